"""Small random checkpoints and the logits that transformers computes from them.

    python scripts/oracles/logits.py crates/offshoot-models/tests/data/logits [NAME ...]

writes for each model, or for those named, `NAME.gguf`, a file as llama.cpp's converter would write
it (matrices in F16, no tokenizer; none for those that are like another but for settings that such
files do not have), and `NAME.logits`, little-endian:

    u32 n tokens | u32 vocabulary | the token ids, u32 | the logits of every position, f32

Beside each file stands `NAME.pooled`: the mean of `last_hidden_state` over all positions and its last
row, f32.

Needs `gguf` (0.19), `torch` (2.15) and `transformers` (5.23). Weights are rounded to what the file
stores before transformers sees them, so the logits are those of the file, computed in float32.
"""

import pathlib
import struct
import sys

import gguf
import numpy as np
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

TOKENS = 24


def longrope(context, **more):
    """Phi-3's rotary parameters, of six pairs, trained for `context` tokens at first."""
    return {
        "rope_type": "longrope", "rope_theta": 500.0, "original_max_position_embeddings": context,
        "short_factor": [1.0, 1.05, 1.1, 1.25, 1.5, 2.0],
        "long_factor": [1.1, 1.5, 2.5, 4.0, 6.5, 9.0], **more,
    }  # fmt: skip


# Between them: all families; biases everywhere, on attention alone, on q, k and v alone, and nowhere;
# heads in groups of 1, 2 and 3; heads as wide as hidden / heads and wider; tied and untied output
# heads; rotary frequencies plain, scaled linearly, by Llama 3's rule, by LongRoPE's and by YaRN,
# whose ramp begins and ends within a head, with magnitudes by rule and given, of whole heads and of
# parts; widths that are no multiple of 32; windows in all layers and in some;
# norms after each half of a block, capped logits, scores of a scale of their own; experts in all layers
# and in some, whose shares sum to 1 or do not. New ones go to the end: the place of a model is its
# seed.
MODELS = {
    "llama_biases": dict(
        config=LlamaConfig, hidden_size=40, intermediate_size=56, vocab_size=100,
        num_attention_heads=4, num_key_value_heads=4, head_dim=16, tie_word_embeddings=True,
        attention_bias=True, mlp_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "llama_linear": dict(
        config=LlamaConfig, hidden_size=48, intermediate_size=64, vocab_size=100,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12, tie_word_embeddings=False,
        rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    ),
    "llama_factors": dict(
        config=LlamaConfig, hidden_size=36, intermediate_size=40, vocab_size=100,
        num_attention_heads=3, num_key_value_heads=1, head_dim=24, tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    ),
    "qwen2_tied": dict(
        config=Qwen2Config, hidden_size=32, intermediate_size=64, vocab_size=130,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    ),
    "qwen2_untied": dict(
        config=Qwen2Config, hidden_size=48, intermediate_size=48, vocab_size=101,
        num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "qwen3_tied": dict(
        config=Qwen3Config, hidden_size=40, intermediate_size=56, vocab_size=100,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    ),
    "qwen3_yarn": dict(
        config=Qwen3Config, hidden_size=48, intermediate_size=40, vocab_size=101,
        num_attention_heads=3, num_key_value_heads=1, head_dim=24, tie_word_embeddings=False,
        attention_bias=True,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "beta_fast": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "mistral_window": dict(
        config=MistralConfig, hidden_size=40, intermediate_size=48, vocab_size=100,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12, tie_word_embeddings=False,
        sliding_window=5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "mistral_whole": dict(like="mistral_window", sliding_window=None),
    "qwen3_window": dict(
        like="qwen3_tied", use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "gemma3_linear": dict(
        config=Gemma3TextConfig, num_hidden_layers=7, hidden_size=32, intermediate_size=40,
        vocab_size=100, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
        query_pre_attn_scalar=12, sliding_window=5, tie_word_embeddings=True,
        final_logit_softcapping=4.0,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "phi3_short": dict(
        config=Phi3Config, hidden_size=48, intermediate_size=40, vocab_size=101,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, sliding_window=7,
        original_max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_parameters=longrope(64),
    ),
    "phi3_long": dict(
        like="phi3_short", original_max_position_embeddings=16,
        rope_parameters=longrope(16),
    ),
    "gemma3_scalar": dict(
        like="gemma3_linear", query_pre_attn_scalar=40, final_logit_softcapping=None,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
        layer_types=["full_attention", "sliding_attention"] * 3 + ["full_attention"],
    ),
    "qwen3_moe": dict(
        config=Qwen3MoeConfig, hidden_size=40, intermediate_size=56, vocab_size=100,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False,
        moe_intermediate_size=24, num_experts=7, num_experts_per_tok=3, norm_topk_prob=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    ),
    "qwen3_moe_mixed": dict(
        config=Qwen3MoeConfig, num_hidden_layers=5, hidden_size=32, intermediate_size=48,
        vocab_size=101, num_attention_heads=2, num_key_value_heads=1, head_dim=12,
        tie_word_embeddings=True, attention_bias=True, moe_intermediate_size=20, num_experts=5,
        num_experts_per_tok=2, norm_topk_prob=False, decoder_sparse_step=2, mlp_only_layers=[1],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "qwen3_moe_window": dict(like="qwen3_moe", use_sliding_window=True, sliding_window=4),
    "gemma3_biases": dict(
        config=Gemma3TextConfig, hidden_size=32, intermediate_size=40, vocab_size=100,
        num_attention_heads=2, num_key_value_heads=1, head_dim=12, query_pre_attn_scalar=12,
        sliding_window=5, tie_word_embeddings=False, attention_bias=True,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "qwen3_yarn_slow": dict(
        like="qwen3_yarn", rope_parameters={
            "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "beta_fast": 4.0,
            "beta_slow": 2.5, "attention_factor": 0.9, "original_max_position_embeddings": 64,
        },
    ),
    "qwen3_yarn_mscale": dict(
        like="qwen3_yarn", rope_parameters={
            "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "beta_fast": 4.0,
            "mscale": 3.0, "mscale_all_dim": 0.5, "original_max_position_embeddings": 64,
        },
    ),
    "phi3_factor": dict(
        like="phi3_short", original_max_position_embeddings=16,
        rope_parameters=longrope(16, factor=3.0),
    ),
    "phi3_magnitude": dict(
        like="phi3_short", rope_parameters=longrope(64, attention_factor=1.5),
    ),
    "qwen2_window": dict(
        like="qwen2_tied", use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "mistral_tied": dict(like="mistral_window", tie_word_embeddings=True),
    "qwen3_moe_mixed_window": dict(
        like="qwen3_moe_mixed", use_sliding_window=True, sliding_window=4, norm_topk_prob=True
    ),
    "phi3_partial": dict(
        config=Phi3Config, hidden_size=48, intermediate_size=40, vocab_size=101,
        num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True, sliding_window=200,
        original_max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_parameters=longrope(64, partial_rotary_factor=0.75),
    ),
    "phi3_plain": dict(
        config=Phi3Config, hidden_size=32, intermediate_size=56, vocab_size=100,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True, sliding_window=None,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "phi3_partial_long": dict(
        like="phi3_partial", original_max_position_embeddings=16,
        rope_parameters=longrope(16, partial_rotary_factor=0.75),
    ),
}  # fmt: skip

CLASSES = {
    Gemma3TextConfig: Gemma3ForCausalLM,
    LlamaConfig: LlamaForCausalLM,
    MistralConfig: MistralForCausalLM,
    Phi3Config: Phi3ForCausalLM,
    Qwen2Config: Qwen2ForCausalLM,
    Qwen3Config: Qwen3ForCausalLM,
    Qwen3MoeConfig: Qwen3MoeForCausalLM,
}

# What llama.cpp calls the architectures that it does not call as transformers does.
ARCHITECTURES = {"gemma3_text": "gemma3", "mistral": "llama", "qwen3_moe": "qwen3moe"}

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}


def gguf_name(name, arch):
    stem, kind = name.rsplit(".", 1)
    if arch == "gemma3" and stem.endswith("post_attention_layernorm"):
        return f"blk.{stem.split('.')[2]}.post_attention_norm.{kind}"
    if stem.startswith("model.layers."):
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def build(seed, spec):
    """A model with random weights, none of which the forward pass can do without."""
    spec = dict(spec)
    config_class = spec.pop("config")
    config = config_class(**{
        "num_hidden_layers": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "attn_implementation": "eager", **spec,
    })  # fmt: skip
    model = CLASSES[config_class](config).to(torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            random = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight") and config_class is Gemma3TextConfig:
                # Less 1, and exact beside 1, as brain floats are.
                weight.copy_((0.3 * random).bfloat16().float())
            elif name.endswith("norm.weight"):
                weight.copy_(1 + 0.3 * random)
            elif weight.dim() == 1:
                weight.copy_(0.3 * random)
            elif "embed_tokens" in name:
                weight.copy_(0.5 * random)
            else:
                weight.copy_(1.5 * random / weight.shape[-1] ** 0.5)
            if weight.dim() > 1:
                weight.copy_(weight.half().float())
    return model


def interleave(rows, heads):
    """Rows `half * (d / 2) + i` of each head go to `2 * i + half`: Llama's q and k in llama.cpp."""
    by_half = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(by_half.swapaxes(1, 2)).reshape(rows.shape)


def write(path, model):
    config = model.config
    arch = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, arch)
    head_dim = model.model.layers[0].self_attn.head_dim
    writer.add_name(path.stem)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "sliding_window", None) or arch == "phi3":
        writer.add_sliding_window(config.sliding_window or 0)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(model.model.rotary_emb.attention_scaling)
        for length in ["short", "long"]:
            factors = np.array(rope[f"{length}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
        scaled = model.model.rotary_emb.inv_freq.double().numpy()
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    if arch == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        if not config.norm_topk_prob:
            writer.add_expert_weights_norm(False)
    for name, weight in model.named_parameters():
        values = weight.detach().numpy()
        # transformers keeps experts as the converter writes them, but for two of three in one.
        if name.endswith(".experts.gate_up_proj"):
            layer = name.split(".")[2]
            for part, matrices in zip(["gate", "up"], np.split(values, 2, axis=1)):
                writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", matrices.astype(np.float16))
            continue
        if name.endswith(".experts.down_proj"):
            layer = name.split(".")[2]
            writer.add_tensor(f"blk.{layer}.ffn_down_exps.weight", values.astype(np.float16))
            continue
        if arch == "gemma3" and name.endswith("norm.weight"):
            values = values + np.float32(1)
        if arch == "llama" and "q_proj" in name:
            values = interleave(values, config.num_attention_heads)
        if arch == "llama" and "k_proj" in name:
            values = interleave(values, config.num_key_value_heads)
        router = name.endswith("mlp.gate.weight")
        stored = np.float16 if values.ndim == 2 and not router else np.float32
        writer.add_tensor(gguf_name(name, arch), values.astype(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {name: seed for seed, name in enumerate(MODELS, start=1)}
    for name, spec in MODELS.items():
        if names and name not in names:
            continue
        like = spec.get("like")
        if like:
            spec = MODELS[like] | {key: value for key, value in spec.items() if key != "like"}
        seed = seeds[like or name]
        model = build(seed, spec)
        vocab = model.config.vocab_size
        generator = torch.Generator().manual_seed(100 + seed)
        tokens = torch.randint(vocab, (1, TOKENS), generator=generator)
        with torch.no_grad():
            logits = model(tokens).logits[0]
            states = model.model(tokens).last_hidden_state[0]
        assert logits.dtype == torch.float32 and logits.std() > 1
        if not like:
            write(folder / f"{name}.gguf", model)
            pooled = torch.cat([states.double().mean(0).float(), states[-1]])
            (folder / f"{name}.pooled").write_bytes(pooled.numpy().astype("<f4").tobytes())
        record = struct.pack("<2I", TOKENS, vocab) + tokens.numpy().astype("<u4").tobytes()
        (folder / f"{name}.logits").write_bytes(record + logits.numpy().astype("<f4").tobytes())
        sizes = {path.suffix: path.stat().st_size for path in folder.glob(f"{name}.*")}
        print(f"{name}: {sizes} bytes, logits of spread {logits.std():.2f}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
