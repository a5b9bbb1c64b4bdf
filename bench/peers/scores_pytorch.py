"""What transformers makes of a folder: prints JSON of the log-probabilities of texts and of greedy answers.

scores_pytorch.py FOLDER REQUEST.json [--threads N]

The request has `texts`, whose tokens are scored, each behind those before it, `questions`, which go
through the folder's chat template and are answered greedily with at most `max_tokens` tokens. All in
single precision.
"""

import argparse
import json
import pathlib

import torch
import transformers


@torch.inference_mode()
def scores(model, tokenizer, text):
    ids = tokenizer(text, return_tensors="pt").input_ids
    logits = model(input_ids=ids).logits[0].double().log_softmax(-1)
    behind = ids[0, 1:]
    return {"ids": ids[0].tolist(), "logprobs": logits[range(len(behind)), behind].tolist()}


@torch.inference_mode()
def answer(model, tokenizer, question, max_tokens):
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                          max_new_tokens=max_tokens)
    return {"prompt_tokens": ids.shape[1],
            "text": tokenizer.decode(made[0, ids.shape[1]:], skip_special_tokens=True)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("request", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    request = json.loads(options.request.read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)
    model.eval()
    print(json.dumps({
        "scores": [scores(model, tokenizer, text) for text in request["texts"]],
        "answers": [answer(model, tokenizer, question, request["max_tokens"])
                    for question in request["questions"]],
    }))


if __name__ == "__main__":
    main()
