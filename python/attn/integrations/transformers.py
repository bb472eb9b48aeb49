"""Attention implementations for Hugging Face transformers models.

::

    from attn.integrations.transformers import register

    register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="attn")
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..mechanisms.attention import attention
from ..mechanisms.decode import decode_attention
from ..mechanisms.hip import hip_attention
from ..mechanisms.s2 import s2_attention
from .mask_rule import MaskRule, rule_of_mask, rule_of_mask_function, with_window
from .options import HipOptions, S2Options, WindowOptions
from .sequences import over_sequences

__all__ = ["HipOptions", "S2Options", "WindowOptions", "register"]

# Rows up to which a step is decoding: the cache is read once, cut among the cores.
DECODE_ROWS = 16

# What models hand through to every layer and attention has no use for.
_OF_NO_CONCERN = frozenset(
    [
        "cache_position",
        "max_length_k",
        "max_length_q",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    ]
)
_WHY_REFUSED = {
    "dropout": "attention dropout is not supported; call model.eval() or set the attention dropout of the "
    "config to 0",
    "output_attentions": "attention weights are never formed; load the model with "
    'attn_implementation="eager" to look at them',
    "position_bias": "an additive bias on the logits is not supported; use sdpa or eager for this model",
}


def register(
    *, hip: HipOptions | None = None, s2: S2Options | None = None, window: WindowOptions | None = None
) -> None:
    """Makes ``attn``, ``attn_hip``, ``attn_s2`` and ``attn_window`` known to transformers, for
    ``attn_implementation=`` and ``model.set_attn_implementation(...)``.

    - ``attn``: exact attention; the same model, logits and gradients as with sdpa or eager.
    - ``attn_hip``, ``attn_s2``, ``attn_window``: :func:`attn.hip_attention`, :func:`attn.s2_attention`, and
      a sliding window with sinks, in every layer with full attention. Layers in which the model itself has
      a sliding window, and ``dense_layers`` of the options, stay exact. Every sequence of a padded or packed
      batch gets what it would get alone.

    Grouped heads, sliding_window, softcap, scaling and learned sinks (``s_aux``) of the model are honoured;
    padding, packed sequences (position_ids, cu_seq_lens_*), chunked attention and caches become rules of the
    kernels, not masks. Whatever else a model passes is refused.

    Calling it again replaces the options; models already loaded follow.

    Args:
        hip, s2, window: options of the sparse three; default: those of the classes.

    Raises:
        ImportError: transformers is missing or older than version 5.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
    except ImportError as error:
        raise ImportError(
            "attn.integrations.transformers needs transformers >= 5: pip install 'attn[transformers]'"
        ) from error
    if "q_offset" not in inspect.signature(sdpa_mask).parameters:
        import transformers

        raise ImportError(
            f"attn.integrations.transformers needs transformers >= 5, found {transformers.__version__}"
        )
    for name, given, kind in (
        ("hip", hip, HipOptions),
        ("s2", s2, S2Options),
        ("window", window, WindowOptions),
    ):
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"{name} must be {kind.__name__}, got {type(given).__name__}")
    for name, options in {
        "attn": None,
        "attn_hip": hip or HipOptions(),
        "attn_s2": s2 or S2Options(),
        "attn_window": window or WindowOptions(),
    }.items():
        AttentionInterface.register(name, partial(_forward, name=name, options=options))
        # Without a mask function a model would pass no mask at all, and padding would be attended to.
        AttentionMaskInterface.register(name, rule_of_mask_function)


def _forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    name: str,
    options: HipOptions | S2Options | WindowOptions | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """q ``[B, H, Tq, D]``, k and v ``[B, Hkv, Tk, D]`` -> (``[B, Tq, H, Dv]`` contiguous, None). Without
    options, exact.
    """
    _refuse(name, dropout=dropout, **others)
    rule = _rule(module, query, key, attention_mask, sliding_window, is_causal)
    packed = _packed(name, query, rule, cu_seq_lens_q, cu_seq_lens_k)
    windowed = rule.left >= 0 or rule.right >= 0
    if options is None or windowed or getattr(module, "layer_idx", None) in options.dense_layers:
        rule = _with_seq_idx(rule, seq_idx, bool(packed))
        return _exact(query, key, value, rule, packed, scaling, softcap, s_aux), None
    if packed and rule.q_ids is None:
        rule = _segments_of_bounds(rule, query, packed)
    rule = _with_seq_idx(rule, seq_idx, bool(packed))
    attend = _sparse(options, rule.causal, scaling, softcap, name)
    sinks = None if s_aux is None else s_aux.float()
    out = over_sequences(attend, query, key, value, rule, sinks, name)
    return out.transpose(1, 2).contiguous(), None


def _sparse(
    options: HipOptions | S2Options | WindowOptions,
    causal: bool,
    scaling: float | None,
    softcap: float | None,
    name: str,
) -> Callable[..., Any]:
    """The function of one sequence's q, k, v that options stand for."""
    arguments: dict[str, Any] = {"scale": scaling, "causal": causal, **options.arguments()}
    if isinstance(options, WindowOptions):
        left = arguments.pop("window") - 1
        return partial(attention, **arguments, window=(left, 0 if causal else left), softcap=softcap)
    if softcap is not None:
        raise ValueError(
            f"softcap is not supported by {name}, got {softcap}; use attn or attn_window for this model"
        )
    return partial(hip_attention if isinstance(options, HipOptions) else s2_attention, **arguments)


def _exact(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rule: MaskRule,
    packed: dict[str, Any],
    scaling: float | None,
    softcap: float | None,
    s_aux: Tensor | None,
) -> Tensor:
    key, value = key[:, :, : rule.keys], value[:, :, : rule.keys]
    rows = query.shape[2]
    segments = None if rule.q_ids is None or rule.k_ids is None else (rule.q_ids, rule.k_ids)
    window = None if rule.left < 0 and rule.right < 0 else (rule.left, rule.right)
    learns = torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad or s_aux is not None
    )
    plain = not packed and rule.layout is None and softcap is None and s_aux is None and not learns
    # One row is causal either way. Several rows with ids of their own are not a cache's newest tokens.
    if plain and (rows == 1 or (rule.causal and segments is None and rows <= DECODE_ROWS)):
        weight = None
        if segments is not None:
            weight = torch.where(segments[0] == segments[1], 0.0, float("-inf"))[:, None]
        seqlens = torch.full((query.shape[0],), rule.keys, dtype=torch.int32, device=query.device)
        out = decode_attention(
            query, key, value, seqlens=seqlens, window=window, scale=scaling, key_log_weight=weight
        )
    else:
        out = attention(
            query,
            key,
            value,
            layout=rule.layout,
            causal=rule.causal,
            window=window,
            scale=scaling,
            softcap=softcap,
            segment_ids=segments,
            sink_logits=None if s_aux is None else s_aux.float(),
            **packed,
        )
    assert isinstance(out, Tensor)
    return out.transpose(1, 2).contiguous()


def _rule(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Any,
    sliding_window: int | None,
    is_causal: bool | None,
) -> MaskRule:
    """The mask says everything where there is one; else the flags do."""
    rows, keys = query.shape[2], key.shape[2]
    if attention_mask is None:
        causal = (getattr(module, "is_causal", True) if is_causal is None else is_causal) and rows > 1
        if causal and rows != keys:
            raise ValueError(
                f"attention_mask is None for {rows} causal queries and {keys} keys: where the queries "
                "stand is unknown; give the mask that transformers.masking_utils.create_causal_mask makes"
            )
        rule = MaskRule(keys, causal=bool(causal))
    elif isinstance(attention_mask, MaskRule):
        rule = attention_mask
        if rule.keys > keys:
            raise ValueError(f"attention_mask was made for at least {rule.keys} keys, got {keys}")
    else:
        rule = rule_of_mask(attention_mask, rows, keys)
    if sliding_window is None or rule.layout is not None:
        return rule
    if rule.causal or rows == 1:
        return with_window(rule, sliding_window - 1, -1)
    # A bidirectional mask that has a window already has counted it in its own way.
    return rule if rule.left >= 0 else with_window(rule, sliding_window - 1, sliding_window - 1)


def _packed(
    name: str, query: Tensor, rule: MaskRule, q: Tensor | None, k: Tensor | None
) -> dict[str, Tensor]:
    if q is None and k is None:
        return {}
    if query.shape[0] != 1:
        raise ValueError(
            f"cu_seq_lens_q needs a batch of 1 with the sequences packed one after another, got a batch of "
            f"{query.shape[0]}"
        )
    if rule.layout is not None:
        raise ValueError(f"cu_seq_lens_q is not supported by {name} together with a mask of its own kind")
    bounds = {"cu_seqlens_q": q, "cu_seqlens_k": k}
    return {key: x.flatten().int() for key, x in bounds.items() if x is not None}


def _segments_of_bounds(rule: MaskRule, query: Tensor, packed: dict[str, Any]) -> MaskRule:
    q, k = packed["cu_seqlens_q"], packed.get("cu_seqlens_k", packed["cu_seqlens_q"])

    def ids(bounds: Tensor, n: int) -> Tensor:
        return torch.bucketize(torch.arange(n, device=query.device), bounds[1:], right=True)[None].int()

    return MaskRule(rule.keys, rule.causal, q_ids=ids(q, query.shape[2]), k_ids=ids(k, rule.keys))


def _with_seq_idx(rule: MaskRule, seq_idx: Tensor | None, packed: bool) -> MaskRule:
    """seq_idx repeats what the positions or bounds say; alone, it is what keeps sequences apart."""
    if seq_idx is None or packed or rule.q_ids is not None or rule.layout is not None:
        return rule
    ids = seq_idx.int()
    return MaskRule(rule.keys, rule.causal, rule.left, rule.right, ids, ids)


def _refuse(name: str, **arguments: Any) -> None:
    for argument, value in arguments.items():
        if argument in _OF_NO_CONCERN or value is None or value is False:
            continue
        if argument == "dropout" and value == 0:
            continue
        why = _WHY_REFUSED.get(argument, "this argument is unknown and would change nothing, unnoticed")
        given = f"{type(value).__name__} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{argument}={given} is not supported by {name}: {why}")
