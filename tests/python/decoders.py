"""Small decoders of four families with random weights, and batches for them."""

import torch
import transformers

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.3,  # so that attention decides what is generated
}


def llama():
    return transformers.LlamaConfig(**SHAPE), "sdpa"


def qwen3():  # the second layer has a window
    more = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
    return transformers.Qwen3Config(**SHAPE, **more), "sdpa"


def gemma2():
    more = {"sliding_window": 7, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 2.0}
    more["tie_word_embeddings"] = False  # tied, it repeats one token
    return transformers.Gemma2Config(**SHAPE, **more), "eager"


def gpt_oss():
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    more = {"sliding_window": 7, "num_local_experts": 2, "num_experts_per_tok": 1, "rope_parameters": rope}
    return transformers.GptOssConfig(**SHAPE, **more), "eager"


FAMILIES = [llama, qwen3, gemma2, gpt_oss]


def decoder(family, implementation=None, seed=0):
    """(the model, the name of the implementation to compare with)"""
    config, plain = family()
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=plain).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=1.0)
    if implementation is not None:
        model.set_attn_implementation(implementation)
    return model, plain


def batch(side, tokens=20, lengths=(15, 20, 9), seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (len(lengths), tokens), generator=g)
    place = torch.arange(tokens)
    kept = [place >= tokens - n if side == "left" else place < n for n in lengths]
    mask = torch.stack(kept).long()
    return ids * mask, mask
