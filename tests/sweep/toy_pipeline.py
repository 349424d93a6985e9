"""The toy pipeline as an experiment: teacher, student alone, student distilled."""

from tests.sweep.toy import get_pipeline as get_config

__all__ = ["get_config"]
