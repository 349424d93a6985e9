"""bigjax: large-model research in JAX and Flax, one config file to one reproducible run."""

__version__ = "0.1.0"
