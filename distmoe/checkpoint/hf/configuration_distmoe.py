"""Configuration of an exported distmoe model. Self-contained: needs transformers only."""

from transformers import PretrainedConfig


class DistmoeConfig(PretrainedConfig):
    """Everything that `modeling_distmoe.py` needs besides the weights.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act,
        type_vocab_size, pad_token_id, layer_norm_eps, initializer_range, hidden_dropout_prob,
        attention_probs_dropout_prob: As in BERT.
        max_position_embeddings: Longest sequence; the position table has `position_offset` rows more.
        position_offset: 0: positions as BERT counts them; otherwise as RoBERTa does (padding id + 1).
        norm: LayerNorm after (`post`) or before (`pre`) each sub-layer.
        pooling: The state that the heads read: `cls` or `mean`.
        tasks: One entry per task, in the order of task ids: `name`, `kind` (classification, pair_classification,
            regression), `num_outputs`, `labels`, `pair`, `metric`, `family`, `description`.
        routed_layers: One entry per routed layer: `layer` (index), `unit`, `task_groups` (task ids). Unit `block` is a
            whole layer per task group. Unit `ffn` has also `num_experts` (of all task groups), `pool_sizes` (each task
            group's consecutive share of them), `expert_size`, `shared_size` (0: no shared expert), `top_k`, `combine`,
            `gate` (`kind` as trained, `form`, `granularity`, and the form's sizes).
        conditional: Task-conditioned modules; None: none. `alignment` (whether), `layer_norm` (layers), `attention`
            (`layers`, `max_length`, `block_side`), `adapters` (by layer: `size`, `activation`, `norm`), `chain` (the
            same, of adapters over all layers that make the output).
        default_task: Task of a call that names none; the only one, if there is one. `from_pretrained(...,
            default_task="sst2")` makes a single-task model of it, with that task's labels and problem type, for
            example for a pipeline.
        distmoe_version: Version that wrote the export.
    """

    model_type = "distmoe"

    def __init__(
        self,
        vocab_size=30522,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        hidden_act="gelu",
        max_position_embeddings=512,
        position_offset=0,
        type_vocab_size=2,
        pad_token_id=0,
        norm="post",
        layer_norm_eps=1e-12,
        pooling="cls",
        initializer_range=0.02,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        tasks=None,
        routed_layers=None,
        conditional=None,
        default_task=None,
        distmoe_version=None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.position_offset = position_offset
        self.type_vocab_size = type_vocab_size
        self.norm = norm
        self.layer_norm_eps = layer_norm_eps
        self.pooling = pooling
        self.initializer_range = initializer_range
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.tasks = tasks or [{"name": "task", "kind": "classification", "num_outputs": 2, "labels": ["0", "1"]}]
        self.routed_layers = routed_layers or []
        self.conditional = conditional
        self.distmoe_version = distmoe_version
        super().__init__(pad_token_id=pad_token_id, **kwargs)
        self.default_task = self.task_names[0] if default_task is None and len(self.tasks) == 1 else default_task

    def __setattr__(self, key, value):
        # from_pretrained sets keyword arguments as attributes after construction, hence not in __init__.
        super().__setattr__(key, value)
        if key == "default_task" and value is not None:
            task = self.tasks[self.task_id(value)]
            self.id2label = dict(enumerate(task["labels"] or [task["name"]]))
            self.label2id = {label: index for index, label in self.id2label.items()}
            # What a pipeline makes of logits: probabilities of classes, or the number itself.
            self.problem_type = "regression" if task["kind"] == "regression" else "single_label_classification"

    @property
    def task_names(self):
        """Names of all tasks, by task id."""
        return [task["name"] for task in self.tasks]

    def task_id(self, name):
        """Returns the id of a task; ValueError with all names if there is none of that name."""
        if name not in self.task_names:
            raise ValueError(f"unknown task {name!r}; this model has {', '.join(map(repr, self.task_names))}")
        return self.task_names.index(name)
