"""Generative adversarial networks for aerial and satellite imagery.

Import what you need from its module, for example ``from ganlab.training import train``.
The modules are listed, from the ground floor up, in the repository's README.
"""

__version__ = "0.1.0"
