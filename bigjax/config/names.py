"""Which short name in a config means which class: the one list of all parts. Plain strings, no imports."""

from __future__ import annotations

# A new model, task, method, source, transform or schedule is one new file and one line here.
NAMES: dict[str, dict[str, str]] = {
    "method": {
        "supervised": "bigjax.methods.supervised:Supervised",
        "distill": "bigjax.methods.distill.method:Distill",
        "dp_sgd": "bigjax.methods.privacy:DPSGD",
        "fedavg": "bigjax.methods.federated:FedAvg",
        "flow_matching": "bigjax.methods.flow_matching:FlowMatching",
        "ppo": "bigjax.methods.ppo:PPO",
    },
    "objective": {
        "soft": "bigjax.methods.distill.objectives:Soft",
        "reverse_kl": "bigjax.methods.distill.objectives:ReverseKL",
        "jsd": "bigjax.methods.distill.objectives:JSD",
        "logits": "bigjax.methods.distill.objectives:Logits",
        "outputs": "bigjax.methods.distill.objectives:Outputs",
        "dkd": "bigjax.methods.distill.objectives:DKD",
        "dist": "bigjax.methods.distill.objectives:DIST",
        "hard": "bigjax.methods.distill.objectives:Hard",
        "labels": "bigjax.methods.distill.objectives:Labels",
        "hint": "bigjax.methods.distill.feature_objectives:Hint",
        "attention": "bigjax.methods.distill.feature_objectives:AttentionTransfer",
        "relational": "bigjax.methods.distill.feature_objectives:Relational",
        "similarity": "bigjax.methods.distill.feature_objectives:SimilarityPreserving",
        "contrast": "bigjax.methods.distill.feature_objectives:Contrast",
        "hidden_states": "bigjax.methods.distill.layer_objectives:HiddenStates",
        "attention_scores": "bigjax.methods.distill.layer_objectives:AttentionScores",
        "relations": "bigjax.methods.distill.layer_objectives:Relations",
        "dino": "bigjax.methods.distill.objectives:Dino",
    },
    "adapter": {
        "lora": "bigjax.methods.lora:LoRA",
        "dora": "bigjax.methods.lora:DoRA",
        "quantize": "bigjax.methods.quantized:Quantize",
        "qat": "bigjax.methods.quantized:QuantizationAware",
        "quantize_inputs": "bigjax.methods.quantized:QuantizeInputs",
        "low_rank": "bigjax.methods.low_rank:LowRank",
        "prune": "bigjax.methods.pruning:Prune",
        "movement": "bigjax.methods.pruning:Movement",
    },
    "evaluator": {
        "statistics": "bigjax.loop.evaluate:Statistics",
        "samples": "bigjax.loop.samples:Samples",
        "episodes": "bigjax.loop.episodes:Episodes",
        "agreement": "bigjax.loop.agreement:Agreement",
        "judged": "bigjax.loop.judged:Judged",
    },
    "model": {
        "mlp": "bigjax.models.mlp:MLP",
        "cnn": "bigjax.models.cnn:CNN",
        "rnn": "bigjax.models.rnn:RNN",
        "gpt2": "bigjax.models.gpt2:GPT2",
        "llama": "bigjax.models.llama:Llama",
        "bert": "bigjax.models.bert:BERT",
        "t5": "bigjax.models.t5:T5",
        "whisper": "bigjax.models.whisper:Whisper",
        "resnet": "bigjax.models.resnet:ResNet",
        "vgg": "bigjax.models.vgg:VGG",
        "mobilenet_v2": "bigjax.models.mobilenet:MobileNetV2",
        "efficientnet": "bigjax.models.efficientnet:EfficientNet",
        "efficientnet_lite": "bigjax.models.efficientnet_lite:EfficientNetLite",
        "vit": "bigjax.models.vit:ViT",
        "two_towers": "bigjax.models.two_towers:TwoTowers",
        "dit": "bigjax.models.dit:DiT",
        "actor_critic": "bigjax.models.actor_critic:ActorCritic",
    },
    "task": {
        "classification": "bigjax.tasks.classification:Classification",
        "binary": "bigjax.tasks.binary:Binary",
        "multilabel": "bigjax.tasks.multilabel:MultiLabel",
        "regression": "bigjax.tasks.regression:Regression",
        "language_model": "bigjax.tasks.language_model:LanguageModel",
        "masked_lm": "bigjax.tasks.masked_lm:MaskedLM",
        "token_tagging": "bigjax.tasks.token_tagging:TokenTagging",
        "seq2seq": "bigjax.tasks.seq2seq:Seq2Seq",
        "contrastive": "bigjax.tasks.contrastive:Contrastive",
        "image_text": "bigjax.tasks.image_text:ImageText",
        "velocity_field": "bigjax.tasks.velocity:VelocityField",
        "actor_critic": "bigjax.tasks.actor_critic:ActorCritic",
    },
    "source": {
        "tfds": "bigjax.data.sources:TFDS",
        "npz": "bigjax.data.npz:NPZ",
        "csv": "bigjax.data.table:csv",
        "table": "bigjax.data.table:Table",
        "folder": "bigjax.data.pictures:Folder",
        "markov_tokens": "bigjax.data.toy:MarkovTokens",
        "blank": "bigjax.data.blank:Blank",
        "shards": "bigjax.data.shards:Shards",
        "documents": "bigjax.data.documents:Documents",
        "speech": "bigjax.data.speech:Speech",
        "labelled_text": "bigjax.data.text:LabelledText",
        "tagged_text": "bigjax.data.text:TaggedText",
        "text_pairs": "bigjax.data.text:TextPairs",
        "sentence_pairs": "bigjax.data.text:SentencePairs",
    },
    "transform": {
        "normalize": "bigjax.data.transforms:Normalize",
        "standardize": "bigjax.data.transforms:Standardize",
        "flatten": "bigjax.data.transforms:Flatten",
        "one_hot": "bigjax.data.transforms:OneHot",
        "random_crop": "bigjax.data.transforms:RandomCrop",
        "flip": "bigjax.data.transforms:Flip",
        "shift": "bigjax.data.transforms:Shift",
        "mixup": "bigjax.data.transforms:Mixup",
        "resize": "bigjax.data.augment:Resize",
        "center_crop": "bigjax.data.augment:CenterCrop",
        "random_resized_crop": "bigjax.data.augment:RandomResizedCrop",
        "random_erasing": "bigjax.data.augment:RandomErasing",
        "cutmix": "bigjax.data.augment:CutMix",
        "rand_augment": "bigjax.data.augment:RandAugment",
        "mask_tokens": "bigjax.data.text_transforms:MaskTokens",
    },
    "schedule": {
        "constant": "bigjax.core.schedules:Constant",
        "cosine": "bigjax.core.schedules:Cosine",
        "linear": "bigjax.core.schedules:Linear",
        "step": "bigjax.core.schedules:Step",
        "piecewise": "bigjax.core.schedules:Piecewise",
        "rsqrt": "bigjax.core.schedules:Rsqrt",
    },
}

# Where in a config a `type` names a target, and from which list of names.
KINDS = {
    "model": "model",
    "task": "task",
    "method": "method",
    "method.objectives": "objective",
    "method.objectives.schedule": "schedule",
    "method.objectives.temperature_schedule": "schedule",
    "adapt": "adapter",
    "evaluators": "evaluator",
    "data.source": "source",
    "data.sources": "source",
    "data.mixture_schedules": "schedule",
    "data.augment": "transform",
    "data.preprocess": "transform",
    "optimizer": "optimizer",
    "optimizer.schedule": "schedule",
}

# Sections whose keys are names of the user's, each with a typed section of its own.
NAMED = ("evaluators", "data.sources", "data.mixture_schedules", "method.objectives")
LISTED = ("adapt", "data.augment", "data.preprocess")  # lists of typed sections

# What `config.model` does not say is taken from the published checkpoint that `config.init` names.
DERIVE_MODEL = "bigjax.pretrained.load:derived_model"
# Adapters that are trained on say `config.adapt`, where the config does not.
DERIVE_ADAPT = "bigjax.pretrained.peft_train:adapt_section"
# What neither says is taken from the train split, where that decides it.
DERIVE_SIZES = "bigjax.build.sizes:sizes_of_data"
# Where `config.init` names no family, the checkpoint's config.json says it.
FIND_FAMILY = "bigjax.pretrained.families:family_of_source"
