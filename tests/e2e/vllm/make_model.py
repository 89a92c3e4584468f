"""Write a tiny Llama with random weights, its tokenizer and LoRA adapters to a folder.

Nothing is fetched. The answers are noise; what matters here is that a real engine tokenizes,
batches, caches and streams. Same seed and same tokenizers release, same bytes: two engines
started from one folder, or from two, give the same greedy answers.

Run by the engine's own interpreter (numpy, safetensors, tokenizers):
    python make_model.py FOLDER [--adapters 2]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB = 2048
LAYERS = 2
HIDDEN = 128
HEADS = 4
KV_HEADS = 2
HEAD_DIM = HIDDEN // HEADS
FEED_FORWARD = 256
CONTEXT = 8192  # tokens
RANK = 8
END, TURN, TURN_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}" + TURN + "{{ message['role'] }}\n"
    "{{ message['content'] }}" + TURN_END + "\n{% endfor %}"
    "{% if add_generation_prompt %}" + TURN + "assistant\n{% endif %}"
)

# input and output width of the matrices of one layer
MATRICES = {
    "self_attn.q_proj": (HIDDEN, HEADS * HEAD_DIM),
    "self_attn.k_proj": (HIDDEN, KV_HEADS * HEAD_DIM),
    "self_attn.v_proj": (HIDDEN, KV_HEADS * HEAD_DIM),
    "self_attn.o_proj": (HEADS * HEAD_DIM, HIDDEN),
    "mlp.gate_proj": (HIDDEN, FEED_FORWARD),
    "mlp.up_proj": (HIDDEN, FEED_FORWARD),
    "mlp.down_proj": (FEED_FORWARD, HIDDEN),
}
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj")


def sentences(seed: int) -> Iterator[str]:
    """Made-up prose, so that the tokenizer learns a few thousand merges."""
    pick = random.Random(seed)
    heads = ["b", "br", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v"]
    tails = ["a", "an", "e", "el", "en", "i", "in", "o", "or", "u", "us", "ai", "ou"]
    lexicon = [
        "".join(pick.choice(heads) + pick.choice(tails) for _ in range(pick.randint(1, 3)))
        for _ in range(1200)
    ]
    lexicon += ["the", "a", "of", "and", "to", "in", "is", "you", "are", "that", "it", "for"] * 30
    for _ in range(4000):
        yield " ".join(pick.choices(lexicon, k=14)).capitalize() + ".\n"


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_tokenizer(folder: Path, seed: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END, TURN, TURN_END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(seed), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT,
            "bos_token": END,
            "eos_token": TURN_END,
            "pad_token": PAD,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    return tokenizer


def write_model(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder, seed)
    vocab = tokenizer.get_vocab_size()
    ends = {
        "bos_token_id": tokenizer.token_to_id(END),
        "eos_token_id": tokenizer.token_to_id(TURN_END),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        **ends,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", ends)

    noise = np.random.default_rng(seed)

    def matrix(width: int, height: int) -> np.ndarray:
        return (noise.standard_normal((height, width)) * 0.06).astype(np.float32)

    ones = np.ones(HIDDEN, np.float32)
    tensors = {
        "model.embed_tokens.weight": matrix(HIDDEN, vocab),
        "lm_head.weight": matrix(HIDDEN, vocab),
        "model.norm.weight": ones,
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = ones.copy()
        tensors[f"{prefix}.post_attention_layernorm.weight"] = ones.copy()
        for name, (width, height) in MATRICES.items():
            tensors[f"{prefix}.{name}.weight"] = matrix(width, height)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def write_adapter(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "tiny",
            "r": RANK,
            "lora_alpha": 2 * RANK,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": list(ADAPTED),
        },
    )
    noise = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name in ADAPTED:
            width, height = MATRICES[f"self_attn.{name}"]
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            # large enough to change the greedy answer, so that a test can tell it from the base
            for part, shape in (("lora_A", (RANK, width)), ("lora_B", (height, RANK))):
                values = noise.standard_normal(shape) * 0.5
                tensors[f"{prefix}.{part}.weight"] = values.astype(np.float32)
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny random Llama and its adapters.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adapters", type=int, default=2)
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    write_model(args.folder / "tiny", args.seed)
    for number in range(args.adapters):
        write_adapter(args.folder / f"lora-{number}", args.seed + 1 + number)


if __name__ == "__main__":
    main()
