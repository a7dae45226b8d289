"""Measures every operator beside PyTorch, ``torch.compile`` and the peers: ``python -m benchmarks --help``.

A family's cases are one file here (``coupling.py``, ``minibatch.py``, ``overhead.py``), made of the declarations of
``case.py``; ``peers/`` calls other libraries; ``harness.py`` checks and times; ``report.py`` writes tables and draws.
"""
