"""A user of exports who has never heard of distmoe. Run as ``python -I hf_consumer.py JOBS RESULTS``.

JOBS is a file made with ``torch.save``: a list of dicts with ``folder``, ``model_inputs`` and ``calls`` (keyword
arguments of the forward pass). RESULTS receives, per job, the logits or the error of each call.
"""

import sys


class _NoDistmoe:
    """Makes distmoe unimportable, also where it is installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "distmoe":
            raise ModuleNotFoundError(f"{name} is blocked")


sys.meta_path.insert(0, _NoDistmoe())

import torch  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline  # noqa: E402

torch.set_num_threads(1)


def run(job):
    model, info = AutoModelForSequenceClassification.from_pretrained(
        job["folder"], trust_remote_code=True, output_loading_info=True, **job.get("options", {})
    )
    answers = []
    for call in job["calls"]:
        try:
            with torch.no_grad():
                answers.append(model(**job["model_inputs"], **call).logits)
        except ValueError as failure:
            answers.append(str(failure))
    result = {
        "answers": answers,
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "class": f"{type(model).__module__.partition('.')[0]}.{type(model).__name__}",
    }
    result["id2label"] = AutoConfig.from_pretrained(
        job["folder"], trust_remote_code=True, **job.get("options", {})
    ).id2label
    if "texts" in job:
        tokenizer = AutoTokenizer.from_pretrained(job["folder"], trust_remote_code=True)
        use = pipeline("text-classification", model=model, tokenizer=tokenizer)
        result["pipeline"] = use(job["texts"], top_k=None)
        with torch.no_grad():
            result["pipeline logits"] = model(**tokenizer(**job["texts"], return_tensors="pt")).logits[0]
    if "save_to" in job:
        model.save_pretrained(job["save_to"])
        again = AutoModelForSequenceClassification.from_pretrained(job["save_to"], trust_remote_code=True)
        with torch.no_grad():
            result["after_saving"] = again(**job["model_inputs"], **job["calls"][0]).logits
        base = AutoModel.from_pretrained(job["folder"], trust_remote_code=True)
        with torch.no_grad():
            output = base(**job["model_inputs"], **job["calls"][0], output_hidden_states=True)
        result["base"] = (
            type(base).__name__,
            output.last_hidden_state,
            output.pooler_output,
            len(output.hidden_states),
        )
        model.train()
        output = model(
            **job["model_inputs"], **job["calls"][0], labels=torch.zeros(len(job["model_inputs"]["input_ids"]))
        )
        output.loss.backward()
        result["loss"] = output.loss.item()
        result["without_gradient"] = [
            name for name, p in model.named_parameters() if p.requires_grad and p.grad is None
        ]
    return result


if __name__ == "__main__":
    jobs = torch.load(sys.argv[1], weights_only=True)
    torch.save([run(job) for job in jobs], sys.argv[2])
