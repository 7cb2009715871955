"""Task-routed mixture-of-experts decoder exported from distmoe. Self-contained: needs torch and transformers only.

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
    ids = model.generate(**tokenizer("Once", return_tensors="pt"), task="stories", max_new_tokens=20)

Shape letters: B sequences, S new positions, L all positions, T real tokens, D model width, H heads, d width of a head,
M tasks, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_distmoe_decoder import DistmoeDecoderConfig
from .modeling_distmoe import DistmoeFeedForward, DistmoePreTrainedModel, DistmoeRoutedFeedForward


class DistmoeCausalAttention(nn.Module):
    """Self-attention with grouped queries and rotary positions."""

    def __init__(self, config, layer):
        super().__init__()
        D, d = config.hidden_size, config.head_dim
        H, h = config.num_attention_heads, config.num_key_value_heads
        self.layer, self.head_dim, self.shares_keys = layer, d, h != H
        self.dropout = config.attention_probs_dropout_prob
        self.q = nn.Linear(D, H * d, bias=config.attention_bias)
        self.k = nn.Linear(D, h * d, bias=config.attention_bias)
        self.v = nn.Linear(D, h * d, bias=config.attention_bias)
        self.out = nn.Linear(H * d, D, bias=config.attention_out_bias)
        self.q_norm = nn.RMSNorm(d, eps=config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(d, eps=config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x_BSD, turns, mask_B1SL, cache):
        q, k, v = (part(x_BSD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (self.q, self.k, self.v))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = turn(q, turns), turn(k, turns)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        dropout = self.dropout if self.training else 0.0
        context = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask_B1SL, dropout_p=dropout, enable_gqa=self.shares_keys
        )
        return self.out(context.transpose(1, 2).flatten(2))


def turn(x_BHSd, turns):
    """Queries or keys turned by their positions."""
    cos, sin = turns
    first, second = x_BHSd.chunk(2, dim=-1)
    return x_BHSd * cos.to(x_BHSd.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x_BHSd.dtype)


class DistmoeDecoderLayer(nn.Module):
    """Attention and a dense or routed feed-forward part, each behind an RMSNorm."""

    def __init__(self, config, layer, routed):
        super().__init__()
        D, eps = config.hidden_size, config.rms_norm_eps
        self.routed = routed is not None
        self.attention_norm = nn.RMSNorm(D, eps=eps)
        self.attention = DistmoeCausalAttention(config, layer)
        self.feed_forward_norm = nn.RMSNorm(D, eps=eps)
        if self.routed:
            self.feed_forward = DistmoeRoutedFeedForward(config, routed)
        else:
            self.feed_forward = DistmoeFeedForward(D, config.intermediate_size, config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x_BSD, turns, mask_B1SL, tokens, cache):
        x_BSD = x_BSD + self.dropout(self.attention(self.attention_norm(x_BSD), turns, mask_B1SL, cache))
        normed_BSD = self.feed_forward_norm(x_BSD)
        if not self.routed:
            return x_BSD + self.dropout(self.feed_forward(normed_BSD))
        index_T, task_ids_T, sequence_ids_T = tokens
        normed_ND = normed_BSD.flatten(0, 1)
        y_TD = self.feed_forward(normed_ND[index_T], task_ids_T, sequence_ids_T, len(x_BSD))
        return x_BSD + self.dropout(torch.zeros_like(normed_ND).index_copy(0, index_T, y_TD).view_as(x_BSD))


class DistmoeDecoder(nn.Module):
    """Token table, layers, RMSNorm."""

    def __init__(self, config):
        super().__init__()
        routed = {entry["layer"]: entry for entry in config.routed_layers}
        self.window = config.attention_window
        self.frequencies, self.scale = config.rotary_frequencies, config.rotary_scale
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DistmoeDecoderLayer(config, i, routed.get(i)) for i in range(config.num_hidden_layers)
        )
        self.final_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x_BSD, mask_BL, position_ids_BS, task_ids_B, cache):
        """All hidden states [B, S, D]: of the token table, then of each layer, the last one normalised."""
        S, L = x_BSD.shape[1], mask_BL.shape[1]
        index_T = mask_BL[:, L - S :].flatten().nonzero().squeeze(1)
        sequence_ids_T = index_T // S
        tokens = index_T, task_ids_B[sequence_ids_T], sequence_ids_T
        turns, mask_B1SL = self._turns(position_ids_BS), self._mask(mask_BL, S)
        states = [self.dropout(x_BSD)]
        for layer in self.layers:
            states.append(layer(states[-1], turns, mask_B1SL, tokens, cache))
        states[-1] = self.final_norm(states[-1])
        return states

    def _turns(self, position_ids_BS):
        frequencies = torch.tensor(self.frequencies, dtype=torch.float32, device=position_ids_BS.device)
        angles = position_ids_BS.unsqueeze(-1).float() * frequencies
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        return angles.cos() * self.scale, angles.sin() * self.scale

    def _mask(self, mask_BL, S):
        """A token sees itself, and real tokens before it."""
        index_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
        distance_SL = index_L[-S:].unsqueeze(1) - index_L
        seen_SL = distance_SL >= 0
        if self.window is not None:
            seen_SL = seen_SL & (distance_SL < self.window)
        return ((seen_SL & mask_BL[:, None]) | (distance_SL == 0)).unsqueeze(1)


class DistmoeTokenHeads(nn.Module):
    """Logits over the vocabulary: from the token table, one head, or one head per task."""

    def __init__(self, config):
        super().__init__()
        V, D, M = config.vocab_size, config.hidden_size, len(config.tasks)
        self.weight_VD = nn.Parameter(torch.empty(V, D)) if config.head == "shared" else None
        self.weight_MVD = nn.Parameter(torch.empty(M, V, D)) if config.head == "per_task" else None

    def forward(self, x_BSD, task_ids_B, table_VD):
        if self.weight_MVD is not None:
            return torch.bmm(x_BSD, self.weight_MVD[task_ids_B].transpose(1, 2))
        return F.linear(x_BSD, table_VD if self.weight_VD is None else self.weight_VD)


class DistmoeDecoderPreTrainedModel(DistmoePreTrainedModel):
    """Loading, saving and fresh values of what an export does not hold."""

    config_class = DistmoeDecoderConfig  # type: ignore[assignment]
    _no_split_modules = ["DistmoeDecoderLayer"]  # noqa: RUF012

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, DistmoeTokenHeads):
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, std=self.config.initializer_range)


class DistmoeDecoderModel(DistmoeDecoderPreTrainedModel):
    """The decoder without a head. Hidden states depend on the task: it decides which experts a token meets."""

    def __init__(self, config):
        super().__init__(config)
        self.decoder = DistmoeDecoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.decoder.embeddings

    def set_input_embeddings(self, value):
        self.decoder.embeddings = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        task=None,
        task_ids=None,
        output_hidden_states=False,
        return_dict=True,
        **kwargs,
    ):
        x_BSD = self.decoder.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        B, S = x_BSD.shape[:2]
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        L = S + (0 if past_key_values is None else past_key_values.get_seq_length())
        mask_BL = torch.ones(B, L, device=x_BSD.device) if attention_mask is None else attention_mask[:, :L]
        mask_BL = mask_BL.bool()
        if position_ids is None:
            position_ids = (mask_BL.long().cumsum(-1) - 1).clamp(min=0)[:, L - S :]
        task_ids_B = self.resolve_tasks(task, task_ids, B, x_BSD.device)
        states = self.decoder(x_BSD, mask_BL, position_ids, task_ids_B, past_key_values)
        output = BaseModelOutputWithPast(
            last_hidden_state=states[-1],
            past_key_values=past_key_values if use_cache else None,
            hidden_states=tuple(states) if output_hidden_states else None,
        )
        return output if return_dict else output.to_tuple()


class DistmoeForCausalLM(DistmoeDecoderPreTrainedModel, GenerationMixin):
    """The decoder and its heads; `generate(..., task="NAME")` takes the task of all rows, `task_ids` one per row."""

    def __init__(self, config):
        super().__init__(config)
        self.distmoe = DistmoeDecoderModel(config)
        self.heads = DistmoeTokenHeads(config)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        task=None,
        task_ids=None,
        output_hidden_states=False,
        return_dict=True,
        logits_to_keep=0,
        **kwargs,
    ):
        """`labels` are token ids, -100 where there is no loss; position s is predicted from position s - 1."""
        rows = input_ids if inputs_embeds is None else inputs_embeds
        task_ids_B = self.resolve_tasks(task, task_ids, len(rows), rows.device)
        decoded = self.distmoe(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            task_ids=task_ids_B,
            output_hidden_states=output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_BSD = decoded.last_hidden_state[:, kept]
        logits_BSV = self.heads(hidden_BSD, task_ids_B, self.distmoe.decoder.embeddings.weight)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BSV,
            past_key_values=decoded.past_key_values,
            hidden_states=decoded.hidden_states,
        )
        return output if return_dict else output.to_tuple()
