"""Planted faults: does the suite see the mistakes it exists for? ``python -m tests.faults`` plants them one at a time."""
