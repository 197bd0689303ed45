"""Computes expected.json: what transformers makes of the texts with the tokenizers beside this file.

python tests/golden/tokenizers/expected.py, with transformers 5.23.0 and tokenizers 0.23.3.
"""

import json
import pathlib

from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
TEXTS = [
    "",
    "Hello world!",
    " leading",
    "trailing ",
    "   three  spaces   in    a      row  ",
    "   ",
    "a\n\nb\n c\r\n\td",
    "\n",
    "caf\u00e9 na\u00efve e\u0301 d\u00e9j\u00e0",
    "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 ok",
    "\u65e5\u672c\u8a9e\u3068\u6f22\u5b57 \ud55c\uad6d\uc5b4",
    "\u00a0nbsp\u200bzero \ufb01 \uff21\u2026",
    "\u0646\u0635\u060c \u0661\u0662\u06d4",
    "\u0000\u0001\u007f",
    "\u2581under\u2581 \u2581",
    "<0x41> <0x0A>",
    "I'll we've DON'T it's 1234567",
    " Xylophone Xylophone",
    "\u2026\u3002\uff0c\u3001 a.b!c?d (x|y) [z]",
    "<s>hi</s> there <unk> x</s>",
    "a<pad>b <bos>x<eos> <start_of_turn>user\n\n\nz<end_of_turn>",
    "<|endoftext|> x <|im_start|>user\nhi<|im_end|> <tool_call>{}</tool_call>",
    "<|begin_of_text|>a<|eot_id|>\n<|reserved_special_token_7|> b<|end|>  c <|user|>\nq",
    "Who <extra_id_0> is <extra_id_1>.<extra_id_19>",
]


def of(directory):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    ids = [tokenizer(text).input_ids for text in TEXTS]

    def decode(skip):
        options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
        return [tokenizer.decode(row, **options) for row in ids]

    return {
        "vocab_size": len(tokenizer),
        "eos_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.pad_token_id,
        "ids": ids,
        "decoded": decode(True),
        "decoded_with_special_tokens": decode(False),
    }


if __name__ == "__main__":
    directories = sorted(path for path in HERE.iterdir() if path.is_dir())
    expected = {path.name: of(path) for path in directories}
    lines = [f'"texts": {json.dumps(TEXTS)}']
    for name, values in expected.items():
        fields = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
        lines.append(f"{json.dumps(name)}: {{\n" + ",\n".join(fields) + "\n}")
    (HERE / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
