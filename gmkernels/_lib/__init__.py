"""The compiled cores land here; a build that failed leaves its reason instead (BUILD_FAILED.txt)."""
