"""Tests of many seconds whose promise a shorter one keeps as well: slow, though their neighbours are not.

Node ids as pytest prints them; `conftest.py` marks them. Measured by `scripts/test --durations=150`.
"""

LONG = frozenset({
    *(f"tests/test_experiments.py::test_every_experiment_runs_two_steps[{name}]" for name in (
        "brown_gpt", "brown_tagging", "emoji_vit", "fashion_mnist_dp", "manpage_summarize",
        "minilm_search", "smollm2_finetune",
    )),
    *(f"tests/contracts/test_promises.py::test_the_moving_average_is_that_of_the_trained_leaves[{name}]"
      for name in ("dp_sgd", "flow_matching", "ppo")),
    *(f"tests/test_sharding_matrix.py::test_eight_devices_give_the_numbers_of_one[{case}]" for case in (
        "cnn-accumulate 4", "cnn-data 8", "rnn-data 8", "rnn-tensor 4",
    )),
    *(f"tests/test_old_runs.py::test_an_old_run_goes_on_to_the_same_end[{name}]" for name in ("t5", "vit")),
    *(f"tests/test_sharding_report.py::test_no_preset_changes_what_lies_where_or_what_is_sent_unseen[{name}]"
      for name in ("digits_rnn", "fashion_mnist_cnn")),
    "tests/contracts/test_promises.py::test_many_runs_at_once_are_each_what_they_are_alone[lora]",
    "tests/methods/test_flow_matching.py::test_a_model_that_has_learned_nothing_stands_still",
    "tests/sweep/test_run.py::test_interrupted_at_random_a_sweep_ends_in_the_same_table",
    "tests/sweep/test_search.py::test_a_search_interrupted_at_random_draws_the_same_points[random]",
    "tests/sweep/test_vectorize.py::test_a_teacher_trained_with_others_is_a_run_like_any_other",
    "tests/sweep/test_vectorize.py::test_vectorised_equals_sequential_down_to_the_last_bit_of_the_parameters",
    "tests/test_export.py::test_a_decoder_writes_the_same_text_and_stops[llama]",
    "tests/test_export.py::test_roberta_counts_positions_from_the_padding_token_on[1]",
    "tests/test_launch.py::test_a_signal_saves_and_exits_with_75_and_the_run_goes_on[2]",
    "tests/test_memory.py::test_digits_converge_with_the_optimizers_state_in_bfloat16",
    "tests/test_memory.py::test_remat_changes_no_number[full]",
    "tests/test_sharding_matrix.py::test_split_lengths_and_stages_give_the_numbers_of_one_device[dropping-case1]",
    "tests/test_sharding_matrix.py::test_three_axes_give_the_numbers_of_one_device_at_any_batch_size[transformer-8]",
})  # fmt: skip
