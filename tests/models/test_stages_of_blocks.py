"""The pipeline's counts by hand, and what it refuses; its numbers: tests/test_sharding_matrix.py."""

import pytest

from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.models.pipeline import microbatches, pipeline_of


def test_microbatches_are_the_most_that_divide_a_devices_rows():
    assert microbatches(rows=48, stages=2, wanted=None) == 8  # four a stage
    assert microbatches(rows=6, stages=2, wanted=None) == 6
    assert microbatches(rows=7, stages=2, wanted=3) == 1


def test_the_bubble_is_the_idle_part_of_the_ticks():
    # 3 stages, 6 microbatches: 8 ticks, of which each stage works in 6.
    assert pipeline_of(3, 12, 6) == dict(stages=3, microbatches=6, bubble=2 / 8)


def test_microbatches_that_do_not_share_the_rows_are_refused():
    with pytest.raises(UserError, match=r"5 do not share the 32 rows of a device evenly; 4 would"):
        pipeline_of(2, 32, 5)
    with pytest.raises(UserError, match="at least 1"):
        settings.Sharding(microbatches=0)
