"""Encoder of many tasks, exported from distmoe. Self-contained: needs torch and transformers only.

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
    logits = model(**tokenizer("A charming film.", return_tensors="pt"), task="sst2").logits

Shape letters: B sequences, S positions, T real tokens (padding removed), D model width, H hidden width of a router,
E experts of a layer over all task groups, K experts per token, M tasks, C outputs of the widest head; of conditional
modules: L positions with an attention bias, s side of a block.
"""

from numbers import Integral
from types import NoneType

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from .configuration_distmoe import DistmoeConfig


def _gelu_tanh(x):
    return F.gelu(x, approximate="tanh")


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


GATED = "swiglu"


def inner(x, w_in, b_in, activation):
    """Hidden layer of a feed-forward part; gated, `w_in` packs the gate (first) and the factor that it multiplies."""
    h = F.linear(x, w_in, b_in)
    if activation == GATED:
        gate, up = h.chunk(2, dim=-1)
        return F.silu(gate) * up
    return ACTIVATIONS[activation](h)


class DistmoeEmbeddings(nn.Module):
    """Token + position + segment, LayerNorm, dropout."""

    def __init__(self, config):
        super().__init__()
        self.position_offset = config.position_offset
        self.type_vocab_size = config.type_vocab_size
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings + config.position_offset, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, mask_BS, token_type_ids):
        if token_type_ids is None or self.type_vocab_size == 1:
            token_type_ids = torch.zeros_like(input_ids)
        if self.position_offset == 0:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        else:
            positions = mask_BS.long().cumsum(1) * mask_BS.long() + (self.position_offset - 1)
        embedded = self.word(input_ids) + self.token_type(token_type_ids)
        return self.dropout(self.norm(embedded + self.position(positions)))


class DistmoeAttention(nn.Module):
    """Self-attention with one packed projection for queries, keys and values."""

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BSD, mask_B11S):
        q, k, v = self.qkv(x_BSD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11S, dropout_p=dropout)
        return self.out(context.transpose(1, 2).flatten(2))


class DistmoeFeedForward(nn.Module):
    """Dense feed-forward part; a gated one has no biases."""

    def __init__(self, hidden_size, intermediate_size, activation):
        super().__init__()
        self.activation, gated = activation, activation == GATED
        width = 2 * intermediate_size if gated else intermediate_size
        self.w_in = nn.Parameter(torch.empty(width, hidden_size))
        self.b_in = None if gated else nn.Parameter(torch.empty(width))
        self.w_out = nn.Parameter(torch.empty(hidden_size, intermediate_size))
        self.b_out = None if gated else nn.Parameter(torch.empty(hidden_size))

    def forward(self, x):
        return F.linear(inner(x, self.w_in, self.b_in, self.activation), self.w_out, self.b_out)


class DistmoeGate(nn.Module):
    """Chooses experts. What a gate computed from the task alone is a table here, one row per task.

    Forms: `table`, logits by task; `linear`, a router on the token state (one per task with `per_task`), its input
    scaled (`scaled`) and its output shifted (`biased`) by task; `mlp`, a two-layer router whose hidden layer is shifted
    by task. Granularity `sequence` routes the mean state of an example.
    """

    def __init__(self, gate, *, num_tasks, num_experts, hidden_size):
        super().__init__()
        self.form, self.granularity = gate["form"], gate["granularity"]
        self.names = gate_tensor_shapes(gate, num_tasks, num_experts, hidden_size)
        for name, shape in self.names.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        if gate["kind"] == "fixed":
            self.table_ME.requires_grad_(False)

    def forward(self, x_TD, task_ids_T, sequence_ids_T, num_sequences):
        """Logits [T, E] in float32."""
        tensors = {name: getattr(self, name).float() for name in self.names}
        if self.form == "table":
            return tensors["table_ME"][task_ids_T]
        x_TD = x_TD.float()
        if self.granularity == "sequence":
            return self._of_sequences(x_TD, task_ids_T, sequence_ids_T, num_sequences, tensors)
        if self.form == "mlp":
            joint_TH = F.linear(x_TD, tensors["weight_HD"]) + tensors["of_task_MH"][task_ids_T]
            return F.linear(F.gelu(joint_TH + tensors["bias_H"]), tensors["w_out_EH"], tensors["b_out_E"])
        if "scale_MD" in tensors:
            x_TD = x_TD * tensors["scale_MD"][task_ids_T]
        if "weight_MED" in tensors:
            weight_MED = tensors["weight_MED"]
            logits_TME = F.linear(x_TD, weight_MED.flatten(0, 1)).unflatten(1, weight_MED.shape[:2])
            logits_TE = logits_TME[torch.arange(len(x_TD), device=x_TD.device), task_ids_T]
        else:
            logits_TE = F.linear(x_TD, tensors["weight_ED"])
        return logits_TE + tensors["bias_ME"][task_ids_T] if "bias_ME" in tensors else logits_TE

    @staticmethod
    def _of_sequences(x_TD, task_ids_T, sequence_ids_T, num_sequences, tensors):
        sums_BD = x_TD.new_zeros(num_sequences, x_TD.shape[1]).index_add(0, sequence_ids_T, x_TD)
        lengths_B = torch.bincount(sequence_ids_T, minlength=num_sequences).clamp(min=1)
        of_sequence_BE = F.linear(sums_BD / lengths_B.unsqueeze(1), tensors["weight_ED"])
        return of_sequence_BE[sequence_ids_T] + tensors["bias_ME"][task_ids_T]


def gate_tensor_shapes(gate, num_tasks, num_experts, hidden_size):
    """Names and shapes of a gate's tensors, from its entry in the configuration."""
    M, E, D = num_tasks, num_experts, hidden_size
    if gate["form"] == "table":
        return {"table_ME": (M, E)}
    if gate["form"] == "mlp":
        H = gate["router_size"]
        return {"weight_HD": (H, D), "of_task_MH": (M, H), "bias_H": (H,), "w_out_EH": (E, H), "b_out_E": (E,)}
    shapes = {"weight_MED": (M, E, D)} if gate.get("per_task") else {"weight_ED": (E, D)}
    if gate.get("scaled"):
        shapes["scale_MD"] = (M, D)
    if gate.get("biased"):
        shapes["bias_ME"] = (M, E)
    return shapes


class DistmoeRoutedFeedForward(nn.Module):
    """Sends each real token to `top_k` experts of its task's group; no token is dropped."""

    def __init__(self, config, routed):
        super().__init__()
        E, D, width = routed["num_experts"], config.hidden_size, routed["expert_size"]
        self.num_experts, self.top_k, self.combine = E, routed["top_k"], routed["combine"]
        self.activation, gated = config.hidden_act, config.hidden_act == GATED
        self.gate = DistmoeGate(routed["gate"], num_tasks=len(config.tasks), num_experts=E, hidden_size=D)
        self.w_in = nn.Parameter(torch.empty(E, 2 * width if gated else width, D))
        self.b_in = None if gated else nn.Parameter(torch.empty(E, width))
        self.w_out = nn.Parameter(torch.empty(E, D, width))
        self.b_out = None if gated else nn.Parameter(torch.empty(E, D))
        shared = routed["shared_size"]
        self.shared_mlp = DistmoeFeedForward(D, shared, config.hidden_act) if shared else None
        groups = routed["task_groups"]
        # Exports of older versions say no sizes: their task groups have equally many experts.
        sizes = routed.get("pool_sizes", [E // len(groups)] * len(groups))
        self.group_of_expert = [g for g, size in enumerate(sizes) for _ in range(size)]
        self.group_of_task = [next(g for g, group in enumerate(groups) if t in group) for t in range(len(config.tasks))]

    def forward(self, x_TD, task_ids_T, sequence_ids_T, num_sequences):
        logits_TE = self.gate(x_TD, task_ids_T, sequence_ids_T, num_sequences)
        # Experts of the task's own group only.
        group_T1 = torch.tensor(self.group_of_task, device=x_TD.device)[task_ids_T].unsqueeze(1)
        foreign_TE = torch.tensor(self.group_of_expert, device=x_TD.device) != group_T1
        logits_TE = logits_TE.masked_fill(foreign_TE, float("-inf"))
        expert_ids_TK = logits_TE.topk(self.top_k, dim=-1).indices
        weights_TK = self._weights(logits_TE.softmax(-1).gather(1, expert_ids_TK))
        y_TD = self._experts(x_TD, expert_ids_TK, weights_TK)
        return y_TD if self.shared_mlp is None else y_TD + self.shared_mlp(x_TD)

    def _weights(self, chosen_TK):
        if self.combine == "raw":
            return chosen_TK
        if self.combine == "renorm":
            return chosen_TK / chosen_TK.sum(-1, keepdim=True)
        return 1.0 / self.top_k + (chosen_TK - chosen_TK.detach())

    def _experts(self, x_TD, expert_ids_TK, weights_TK):
        order = expert_ids_TK.flatten().argsort(stable=True)
        counts = torch.bincount(expert_ids_TK.flatten(), minlength=self.num_experts).tolist()
        tokens = order // self.top_k
        weights = weights_TK.flatten()[order].unsqueeze(1).to(x_TD.dtype)
        rows = []
        for expert, x in enumerate(x_TD[tokens].split(counts)):
            if counts[expert]:
                b_in, b_out = (None if b is None else b[expert] for b in (self.b_in, self.b_out))
                h = inner(x, self.w_in[expert], b_in, self.activation)
                rows.append(F.linear(h, self.w_out[expert], b_out))
        if not rows:
            return torch.zeros_like(x_TD)
        return torch.zeros_like(x_TD).index_add(0, tokens, torch.cat(rows) * weights)


class DistmoeFilm(nn.Module):
    """Scale and shift by task."""

    def __init__(self, num_tasks, hidden_size):
        super().__init__()
        self.scale_MD = nn.Parameter(torch.empty(num_tasks, hidden_size))
        self.shift_MD = nn.Parameter(torch.empty(num_tasks, hidden_size))

    def forward(self, x_BSD, task_ids_B):
        return torch.addcmul(self.shift_MD[task_ids_B].unsqueeze(1), x_BSD, self.scale_MD[task_ids_B].unsqueeze(1))


class DistmoeTaskLayerNorm(DistmoeFilm):
    """LayerNorm with a weight and a bias per task."""

    def __init__(self, num_tasks, hidden_size, eps):
        super().__init__(num_tasks, hidden_size)
        self.eps = eps

    def forward(self, x_BSD, task_ids_B):
        return super().forward(F.layer_norm(x_BSD, x_BSD.shape[-1:], eps=self.eps), task_ids_B)


class DistmoeAttentionBias(nn.Module):
    """A bias on attention scores by task, in blocks on the diagonal; 0 off the blocks and beyond `max_length`."""

    def __init__(self, num_tasks, max_length, block_side):
        super().__init__()
        self.values_MLs = nn.Parameter(torch.empty(num_tasks, max_length, block_side))

    def forward(self, mask_B11S, task_ids_B):
        """Float mask [B, 1, S, S]."""
        S, (L, s) = mask_B11S.shape[-1], self.values_MLs.shape[1:]
        values_BRs = self.values_MLs[task_ids_B, :S]
        rows_BSs = F.pad(values_BRs, (0, 0, 0, S - values_BRs.shape[1]))
        tiled_BSS = rows_BSs.repeat(1, 1, -(-S // s))[..., :S]
        position = torch.arange(S, device=tiled_BSS.device)
        block, beyond = position // s, position >= L
        outside_SS = (block[:, None] != block) | beyond[:, None] | beyond
        return torch.where(mask_B11S, tiled_BSS.masked_fill(outside_SS, 0.0).unsqueeze(1), float("-inf"))


class DistmoeAdapter(DistmoeFilm):
    """`h + up(act(down(scale h + shift)))`; as published, without activation, in place of the residual only a norm."""

    def __init__(self, num_tasks, hidden_size, entry, eps):
        super().__init__(num_tasks, hidden_size)
        self.act = None if entry["activation"] is None else ACTIVATIONS[entry["activation"]]
        self.w_down = nn.Parameter(torch.empty(entry["size"], hidden_size))
        self.b_down = nn.Parameter(torch.empty(entry["size"]))
        self.w_up = nn.Parameter(torch.empty(hidden_size, entry["size"]))
        self.b_up = nn.Parameter(torch.empty(hidden_size))
        self.norm = DistmoeTaskLayerNorm(num_tasks, hidden_size, eps) if entry["norm"] else None

    def forward(self, h_BSD, attended_BSD, task_ids_B):
        inner = F.linear(super().forward(h_BSD, task_ids_B), self.w_down, self.b_down)
        if self.act is not None:
            return h_BSD + F.linear(self.act(inner), self.w_up, self.b_up)
        change_BSD = F.linear(inner, self.w_up, self.b_up)
        return change_BSD if self.norm is None else self.norm(change_BSD + attended_BSD, task_ids_B)


class DistmoeLayer(nn.Module):
    """Attention and a dense or routed feed-forward part, post-LN or pre-LN, with task-conditioned parts."""

    def __init__(self, config, index, routed):
        super().__init__()
        D, eps = config.hidden_size, config.layer_norm_eps
        self.pre_norm = config.norm == "pre"
        self.routed = routed is not None
        self.attention = DistmoeAttention(config)
        self.attention_norm, self.feed_forward_norm = task_norms(config, index)
        if self.routed:
            self.feed_forward = DistmoeRoutedFeedForward(config, routed)
        else:
            self.feed_forward = DistmoeFeedForward(D, config.intermediate_size, config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.attention_bias = self.bottleneck = None
        if config.conditional is not None:
            M, attention = len(config.tasks), config.conditional["attention"]
            if attention is not None and index in attention["layers"]:
                self.attention_bias = DistmoeAttentionBias(M, attention["max_length"], attention["block_side"])
            if str(index) in config.conditional["adapters"]:
                self.bottleneck = DistmoeAdapter(M, D, config.conditional["adapters"][str(index)], eps)

    def forward(self, x_BSD, mask_B11S, tokens, task_ids_B):
        if self.attention_bias is not None:
            mask_B11S = self.attention_bias(mask_B11S, task_ids_B)
        if self.pre_norm:
            normed_BSD = normalise(self.attention_norm, x_BSD, task_ids_B)
            x_BSD = x_BSD + self.dropout(self.attention(normed_BSD, mask_B11S))
            normed_BSD = normalise(self.feed_forward_norm, x_BSD, task_ids_B)
            y_BSD = x_BSD + self.dropout(self._feed_forward(normed_BSD, tokens))
        else:
            x_BSD = x_BSD + self.dropout(self.attention(x_BSD, mask_B11S))
            x_BSD = normalise(self.attention_norm, x_BSD, task_ids_B)
            y_BSD = x_BSD + self.dropout(self._feed_forward(x_BSD, tokens))
            y_BSD = normalise(self.feed_forward_norm, y_BSD, task_ids_B)
        return y_BSD if self.bottleneck is None else self.bottleneck(y_BSD, x_BSD, task_ids_B)

    def _feed_forward(self, x_BSD, tokens):
        if not self.routed:
            return self.feed_forward(x_BSD)
        index_T, task_ids_T, sequence_ids_T = tokens
        x_ND = x_BSD.flatten(0, 1)
        y_TD = self.feed_forward(x_ND[index_T], task_ids_T, sequence_ids_T, len(x_BSD))
        return torch.zeros_like(x_ND).index_copy(0, index_T, y_TD).view_as(x_BSD)


def task_norms(config, index):
    """The two LayerNorms of a layer, plain or with constants of each task."""
    D, eps = config.hidden_size, config.layer_norm_eps
    if config.conditional is None or index not in config.conditional["layer_norm"]:
        return nn.LayerNorm(D, eps=eps), nn.LayerNorm(D, eps=eps)
    return DistmoeTaskLayerNorm(len(config.tasks), D, eps), DistmoeTaskLayerNorm(len(config.tasks), D, eps)


def normalise(norm, x_BSD, task_ids_B):
    return norm(x_BSD, task_ids_B) if isinstance(norm, DistmoeTaskLayerNorm) else norm(x_BSD)


class DistmoeRoutedLayer(nn.Module):
    """A whole layer per task group; a sequence goes through the one of its task's group."""

    def __init__(self, config, index, routed):
        super().__init__()
        groups = routed["task_groups"]
        self.variants = nn.ModuleDict({f"g{g}": DistmoeLayer(config, index, None) for g in range(len(groups))})
        self.group_of_task = [next(g for g, group in enumerate(groups) if t in group) for t in range(len(config.tasks))]

    def forward(self, x_BSD, mask_B11S, tokens, task_ids_B):
        group_B = torch.tensor(self.group_of_task, device=x_BSD.device)[task_ids_B]
        y_BSD = torch.zeros_like(x_BSD)
        for g, variant in enumerate(self.variants.values()):
            rows_R = (group_B == g).nonzero().squeeze(1)
            if len(rows_R):
                y_RSD = variant(x_BSD[rows_R], mask_B11S[rows_R], tokens, task_ids_B[rows_R])
                y_BSD = y_BSD.index_copy(0, rows_R, y_RSD.to(y_BSD.dtype))
        return y_BSD


def make_layer(config, index, routed):
    whole = routed is not None and routed.get("unit") == "block"
    return DistmoeRoutedLayer(config, index, routed) if whole else DistmoeLayer(config, index, routed)


class DistmoeEncoder(nn.Module):
    """Embeddings and layers."""

    def __init__(self, config):
        super().__init__()
        routed = {entry["layer"]: entry for entry in config.routed_layers}
        self.embeddings = DistmoeEmbeddings(config)
        self.layers = nn.ModuleList(make_layer(config, i, routed.get(i)) for i in range(config.num_hidden_layers))
        conditional, M, D = config.conditional or {}, len(config.tasks), config.hidden_size
        self.alignment = DistmoeFilm(M, D) if conditional.get("alignment") else None
        self.chain = None
        if conditional.get("chain"):
            entry, eps = conditional["chain"], config.layer_norm_eps
            self.chain = nn.ModuleList(DistmoeAdapter(M, D, entry, eps) for _ in range(config.num_hidden_layers))
        pre = config.norm == "pre"
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if pre else None

    def forward(self, input_ids, mask_BS, token_type_ids, task_ids_B):
        """All hidden states [B, S, D]: of the embeddings, then of each layer."""
        index_T = mask_BS.flatten().nonzero().squeeze(1)
        sequence_ids_T = index_T // mask_BS.shape[1]
        tokens = index_T, task_ids_B[sequence_ids_T], sequence_ids_T
        embedded_BSD = self.embeddings(input_ids, mask_BS, token_type_ids)
        states = [embedded_BSD if self.alignment is None else self.alignment(embedded_BSD, task_ids_B)]
        for layer in self.layers:
            states.append(layer(states[-1], mask_BS[:, None, None], tokens, task_ids_B))
        if self.chain is not None:
            carried_BSD = torch.zeros_like(states[-1])
            for adapter, state_BSD in zip(self.chain, states[1:], strict=True):
                carried_BSD = adapter(state_BSD + carried_BSD, None, task_ids_B)
            states[-1] = carried_BSD
        if self.final_norm is not None:
            states[-1] = self.final_norm(states[-1])
        return states


class DistmoePooler(nn.Module):
    """A dense layer and tanh on the first token's state, or on the mean over real tokens."""

    def __init__(self, config):
        super().__init__()
        self.pooling = config.pooling
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BSD, mask_BS):
        if self.pooling == "cls":
            return torch.tanh(self.dense(hidden_BSD[:, 0]))
        weights_BS1 = mask_BS.unsqueeze(-1).float()
        mean_BD = (hidden_BSD * weights_BS1).sum(1) / weights_BS1.sum(1)
        return torch.tanh(self.dense(mean_BD.to(hidden_BSD.dtype)))


class DistmoeHeads(nn.Module):
    """Linear heads of all tasks, stacked and padded to the widest."""

    def __init__(self, config):
        super().__init__()
        self.num_outputs = [task["num_outputs"] for task in config.tasks]
        M, C = len(config.tasks), max(self.num_outputs)
        self.weight = nn.Parameter(torch.empty(M, C, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(M, C))

    def forward(self, pooled_BD, task_ids_B):
        """Float32 logits [B, C]; -inf beyond the outputs of each row's task."""
        weight_BCD, bias_BC = self.weight.float()[task_ids_B], self.bias.float()[task_ids_B]
        logits_BC = torch.einsum("bd,bcd->bc", pooled_BD.float(), weight_BCD) + bias_BC
        width_B1 = torch.tensor(self.num_outputs, device=pooled_BD.device)[task_ids_B].unsqueeze(1)
        return logits_BC.masked_fill(
            torch.arange(logits_BC.shape[1], device=pooled_BD.device) >= width_B1, float("-inf")
        )


class DistmoePreTrainedModel(PreTrainedModel):
    """Loading, saving and fresh values of what an export does not hold."""

    config_class = DistmoeConfig
    base_model_prefix = "distmoe"
    _supports_sdpa = True
    _no_split_modules = ["DistmoeLayer"]  # noqa: RUF012

    def _init_weights(self, module):
        super()._init_weights(module)
        routed = (DistmoeFeedForward, DistmoeRoutedFeedForward, DistmoeGate)
        if isinstance(module, (*routed, DistmoeHeads, DistmoeFilm, DistmoeAttentionBias)):
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith("w"):
                    nn.init.normal_(parameter, std=self.config.initializer_range)
                elif name.startswith("scale"):
                    nn.init.ones_(parameter)
                else:
                    nn.init.zeros_(parameter)

    def resolve_tasks(self, task, task_ids, batch_size, device):
        """Task id of each row [B], from `task` (a name, or one per row) or `task_ids` (an id, or one per row).

        Raises:
            ValueError: If the task is not given and not clear, given twice, unknown, or of another number of rows.
        """
        names = self.config.task_names
        if task is not None and task_ids is not None:
            raise ValueError("give either task or task_ids, not both")
        if task is None and task_ids is None:
            task = self.config.default_task or (names[0] if len(names) == 1 else None)
            if task is None:
                raise ValueError(f"which task? pass task=..., one of {', '.join(map(repr, names))}")
        if task is not None:
            task_ids = self.config.task_id(task) if isinstance(task, str) else [self.config.task_id(n) for n in task]
        ids = torch.as_tensor(task_ids, dtype=torch.long, device=device).reshape(-1)
        if ids.numel() not in (1, batch_size):
            raise ValueError(f"{ids.numel()} tasks for {batch_size} rows; give one, or one per row")
        if ids.numel() and (ids.min() < 0 or ids.max() >= len(names)):
            raise ValueError(f"task ids must be in 0..{len(names) - 1} ({', '.join(names)}); got {ids.tolist()}")
        return ids.expand(batch_size)


class DistmoeModel(DistmoePreTrainedModel):
    """Encoder and pooler. Hidden states depend on the task: it decides which experts a token meets."""

    def __init__(self, config):
        super().__init__(config)
        self.encoder = DistmoeEncoder(config)
        self.pooler = DistmoePooler(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.encoder.embeddings.word

    def set_input_embeddings(self, value):
        self.encoder.embeddings.word = value

    def forward(
        self,
        input_ids,
        attention_mask=None,
        token_type_ids=None,
        task=None,
        task_ids=None,
        output_hidden_states=False,
        return_dict=True,
        **kwargs,
    ):
        mask_BS = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
        task_ids_B = self.resolve_tasks(task, task_ids, len(input_ids), input_ids.device)
        states = self.encoder(input_ids, mask_BS, token_type_ids, task_ids_B)
        output = BaseModelOutputWithPooling(
            last_hidden_state=states[-1],
            pooler_output=self.pooler(states[-1], mask_BS),
            hidden_states=tuple(states) if output_hidden_states else None,
        )
        return output if return_dict else output.to_tuple()


class DistmoeForSequenceClassification(DistmoePreTrainedModel):
    """Encoder, pooler and the heads of all tasks.

    Logits have the outputs of the task when all rows are of one task that is given by name or number; with a task per
    row they are as wide as the widest head, -inf beyond each row's own. A regression's value is column 0.
    """

    def __init__(self, config):
        super().__init__(config)
        self.distmoe = DistmoeModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.heads = DistmoeHeads(config)
        self.post_init()

    def forward(
        self,
        input_ids,
        attention_mask=None,
        token_type_ids=None,
        task=None,
        task_ids=None,
        labels=None,
        output_hidden_states=False,
        return_dict=True,
        **kwargs,
    ):
        task_ids_B = self.resolve_tasks(task, task_ids, len(input_ids), input_ids.device)
        encoded = self.distmoe(
            input_ids, attention_mask, token_type_ids, task_ids=task_ids_B, output_hidden_states=output_hidden_states
        )
        logits = self.heads(self.dropout(encoded.pooler_output), task_ids_B)
        loss = None if labels is None else self._loss(logits, labels, task_ids_B)
        per_row = not isinstance(task, (str, NoneType)) or not isinstance(task_ids, (Integral, NoneType))
        if not per_row and len(input_ids):
            logits = logits[:, : self.heads.num_outputs[int(task_ids_B[0])]]
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)
        return output if return_dict else output.to_tuple()

    def _loss(self, logits_BC, labels_B, task_ids_B):
        """Mean over rows of cross-entropy or, for regressions, squared error."""
        regression = [task["kind"] == "regression" for task in self.config.tasks]
        regression_B = torch.tensor(regression, device=logits_BC.device)[task_ids_B]
        class_B = torch.where(regression_B, 0, labels_B).long()
        entropy_B = F.cross_entropy(logits_BC, class_B, reduction="none")
        return torch.where(regression_B, (logits_BC[:, 0] - labels_B).square(), entropy_B).mean()
