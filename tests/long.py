"""Tests of many seconds whose promise a shorter one keeps as well: slow, though their neighbours are not.

Node ids as pytest prints them; `conftest.py` marks them. Measured by `scripts/test --durations=150`.
"""

LONG = frozenset({
    *(f"tests/test_experiments.py::test_every_experiment_runs_two_steps[{name}]" for name in (
        "brown_gpt", "brown_tagging", "cartpole_ppo", "digits_federated", "efficientnet_qat", "emoji_vit", "fashion_mnist_dp",
        "manpage_summarize", "markov_mixture", "minilm_search", "smollm2_chat", "smollm2_finetune",
        "smollm2_lora",
    )),
    # Distillation's are left, which reads frozen variables as LoRA does and is supervised besides.
    *(f"tests/contracts/test_promises.py::{test}[{name}]" for name in ("lora", "supervised") for test in (
        "test_any_mesh_gives_the_numbers_of_one_device",
        "test_microbatches_add_up_to_the_batch_also_with_ragged_masks",
        "test_bfloat16_computes_nearly_the_same_and_keeps_float32",
    )),
    # A mesh of each kind is left to each family, and each family to each mesh but one.
    *(f"tests/test_sharding_matrix.py::test_eight_devices_give_the_numbers_of_one[{case}]" for case in (
        "cnn-accumulate 4", "cnn-data 8", "cnn-fsdp 4 x tensor 2", "cnn-tensor 2", "mlp-tensor 2",
        "rnn-accumulate 4", "rnn-data 8", "rnn-fsdp 4 x tensor 2", "rnn-shard_map", "rnn-tensor 4",
        "transformer-fsdp 4 x tensor 2", "transformer-tensor 2",
    )),
    "tests/test_sharding_matrix.py::test_three_axes_give_the_numbers_of_one_device_at_any_batch_size[mlp-16]",
    # Every family is left with two heads, every head with a family.
    *(f"tests/test_parity_bert.py::test_published_weights_give_the_published_numbers_and_go_back[{name}]"
      for name in ("roberta-Model", "roberta-ForTokenClassification", "distilbert-Model",
                   "distilbert-ForTokenClassification")),
    # Logits and the way back of each are left; tokens of each kind of cache and positions too.
    *(f"tests/test_parity_decoders.py::test_greedy_tokens[{name}]"
      for name in ("llama-biases", "olmo2", "qwen2")),
    "tests/test_parity_decoders.py::test_layers_in_one_loop_are_the_same[smollm3]",
    *(f"tests/test_parity_llama.py::test_greedy_tokens_of_prompts_of_different_length[{name}]"
      for name in ("llama3", "tied")),
    *(f"tests/test_parity_llama.py::test_an_export_is_read_by_transformers[{name}]"
      for name in ("linear", "llama3")),
    # The same family is left in the other of its two layouts, or with the other of its two blocks.
    "tests/test_parity_vision.py::test_logits_and_export_equal_torch[mobilenet]",
    "tests/test_parity_vision.py::test_logits_and_export_equal_torch[vgg with norms]",
    "tests/test_parity_vision.py::test_logits_equal_transformers_both_ways[resnet bottleneck]",
    "tests/test_parity_vision.py::test_logits_equal_transformers_both_ways[deit, one head, no biases of queries]",
    *(f"tests/test_sharding_report.py::test_no_preset_changes_what_lies_where_or_what_is_sent_unseen[{name}]"
      for name in ("digits_rnn", "fashion_mnist_cnn")),
    *(f"tests/contracts/test_promises.py::test_many_runs_at_once_are_each_what_they_are_alone[{name}]"
      for name in ("lora", "supervised")),
    # Families of other layers are left.
    *(f"tests/test_sharding_matrix.py::test_initialisation_is_bitwise_equal_on_any_number_of_devices[{name}]"
      for name in ("mlp", "rnn")),
    "tests/test_exact.py::test_draws_are_bitwise_equal_however_they_are_sharded[shifted normal]",
    "tests/test_generate.py::test_logits_with_the_cache_equal_those_without[llama]",
    "tests/test_memory.py::test_remat_changes_no_number[dots]",
    "tests/tasks/test_seq2seq.py::test_each_written_token_is_the_most_likely_after_those_before[sinusoidal-False]",
    "tests/methods/test_flow_matching.py::test_a_model_that_has_learned_nothing_stands_still",
    "tests/sweep/test_run.py::test_interrupted_at_random_a_sweep_ends_in_the_same_table",
    "tests/sweep/test_search.py::test_a_search_interrupted_at_random_draws_the_same_points[random]",
    "tests/sweep/test_vectorize.py::test_a_teacher_trained_with_others_is_a_run_like_any_other",
    "tests/sweep/test_vectorize.py::test_vectorised_equals_sequential_down_to_the_last_bit_of_the_parameters",
    "tests/test_export.py::test_a_decoder_writes_the_same_text_and_stops[llama]",
    "tests/test_export.py::test_a_decoder_writes_the_same_text_and_stops[qwen3]",
    "tests/test_export.py::test_roberta_counts_positions_from_the_padding_token_on[1]",
    "tests/test_launch.py::test_a_signal_saves_and_exits_with_75_and_the_run_goes_on[2]",
    "tests/test_memory.py::test_digits_converge_with_the_optimizers_state_in_bfloat16",
    "tests/test_memory.py::test_remat_changes_no_number[full]",
    "tests/test_sharding_matrix.py::test_split_lengths_and_stages_give_the_numbers_of_one_device[dropping-case1]",
    "tests/test_sharding_matrix.py::test_three_axes_give_the_numbers_of_one_device_at_any_batch_size[transformer-8]",
})  # fmt: skip
