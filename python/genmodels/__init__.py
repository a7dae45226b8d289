"""Complete deep generative models built from the operators of :mod:`gmkernels`: models, data, training and pictures.

``genmodels list`` (or ``python -m genmodels list``) names what there is. Everything here uses only the public API of
``gmkernels``.
"""

from gmkernels import __version__

__all__ = ["__version__"]
