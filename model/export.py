"""Write a trained network as GGUF, which llama.cpp and Ollama load, and read one back."""

from __future__ import annotations

import json
from pathlib import Path

from net import EPS, ROPE_BASE, Net, Shape, rope_factors
from render import TEMPLATE
from tokenizer import CONTROL, END, FIXED, PAD

NAMES = {
    "attn_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "q.weight": "attn_q",
    "k.weight": "attn_k",
    "v.weight": "attn_v",
    "o.weight": "attn_output",
    "gate.weight": "ffn_gate",
    "up.weight": "ffn_up",
    "down.weight": "ffn_down",
}


def export(net: Net, tokenizer_path: Path, path: Path, name: str) -> None:
    """Write net and tokenizer.json to path as a GGUF file (matrices Q8_0, the rest F32).

    Q8_0 keeps 32 weights in 34 bytes, half of F16, and is read faster; both answered alike.

    Sources: GGUF specification (ggml docs/gguf.md); tensor names of llama.cpp's llama architecture.
    """
    import gguf
    import torch
    from gguf.quants import quantize

    packed = gguf.GGMLQuantizationType.Q8_0
    shape: Shape = net.shape
    state = json.loads(tokenizer_path.read_text(encoding="utf-8"))
    vocab: dict[str, int] = dict(state["model"]["vocab"])
    kinds = {i: gguf.TokenType.NORMAL for i in vocab.values()}
    for token in state["added_tokens"]:
        vocab[token["content"]] = token["id"]
        kinds[token["id"]] = (
            gguf.TokenType.CONTROL if token["content"] in CONTROL else gguf.TokenType.USER_DEFINED
        )
    assert set(FIXED) <= set(vocab)
    tokens = [t for t, _ in sorted(vocab.items(), key=lambda item: item[1])]
    tokens += [f"[unused{i}]" for i in range(len(tokens), shape.vocab)]
    types = [kinds.get(i, gguf.TokenType.UNUSED) for i in range(shape.vocab)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]

    w = gguf.GGUFWriter(str(path), "llama")
    w.add_name(name)
    w.add_type("model")
    w.add_context_length(shape.context)
    w.add_embedding_length(shape.dim)
    w.add_block_count(shape.layers)
    w.add_feed_forward_length(shape.hidden)
    w.add_head_count(shape.heads)
    w.add_head_count_kv(shape.heads)
    w.add_key_length(shape.head_dim)
    w.add_value_length(shape.head_dim)
    w.add_rope_dimension_count(shape.head_dim)
    w.add_rope_freq_base(ROPE_BASE)
    w.add_layer_norm_rms_eps(EPS)
    w.add_vocab_size(shape.vocab)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges(merges)
    w.add_eos_token_id(vocab[END])
    w.add_eot_token_id(vocab[END])
    w.add_pad_token_id(vocab[PAD])
    w.add_add_bos_token(False)
    w.add_add_space_prefix(False)
    w.add_chat_template(TEMPLATE.read_text(encoding="utf-8"))

    def put(name: str, tensor: torch.Tensor, matrix: bool) -> None:
        array = tensor.detach().float().cpu().contiguous().numpy()
        if matrix:
            w.add_tensor(name, quantize(array, packed), raw_dtype=packed)
        else:
            w.add_tensor(name, array)

    put("token_embd.weight", net.embed.weight, True)
    put("output_norm.weight", net.norm, False)
    put("rope_freqs.weight", rope_factors(shape), False)
    for i, block in enumerate(net.blocks):
        for key, tensor in block.named_parameters():
            put(f"blk.{i}.{NAMES[key]}.weight", tensor, tensor.ndim == 2)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def read(path: Path) -> dict:
    """The weights of a file that export() wrote, as a state dict for a Net of the same shape.

    Training can go on from a finished model with them; what was rounded away is learned anew in
    a few steps.
    """
    import gguf
    import torch
    from gguf.quants import dequantize

    stored = {
        t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).astype("float32"))
        for t in gguf.GGUFReader(str(path)).tensors
    }
    state = {"embed.weight": stored["token_embd.weight"], "norm": stored["output_norm.weight"]}
    for name, tensor in stored.items():
        if name.startswith("blk."):
            _, block, key, _ = name.split(".")
            own = next(k for k, v in NAMES.items() if v == key)
            state[f"blocks.{block}.{own}"] = tensor
    return state
