"""A user of exported decoders who has never heard of distmoe. Run as ``python -I hf_decoder_consumer.py JOBS RESULTS``.

JOBS is a file made with ``torch.save``: a list of dicts with ``folder``, ``model_inputs``, ``calls`` (keyword arguments
of the forward pass and of ``generate``) and ``trust``. RESULTS receives, per job, the logits and greedy answers.
"""

import sys


class _NoDistmoe:
    """Makes distmoe unimportable, also where it is installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "distmoe":
            raise ModuleNotFoundError(f"{name} is blocked")


sys.meta_path.insert(0, _NoDistmoe())

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

torch.set_num_threads(1)


@torch.no_grad()
def run(job):
    model, info = AutoModelForCausalLM.from_pretrained(
        job["folder"], trust_remote_code=job["trust"], output_loading_info=True
    )
    answers, generated = [], []
    for call in job["calls"]:
        answers.append(model(**job["model_inputs"], **call).logits)
        for prompt in job.get("prompts", []):
            # Left padding: generation must not see it, and must not count it as positions.
            padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), prompt], dim=1)
            mask = torch.ones_like(padded)
            mask[:, :2] = 0
            ids = model.generate(
                padded, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None, **call
            )
            generated.append(ids[0, padded.shape[1] :].tolist())
    result = {
        "answers": answers,
        "generated": generated,
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "class": f"{type(model).__module__.partition('.')[0]}.{type(model).__name__}",
    }
    if "labels" in job:
        with torch.enable_grad():
            loss = model(**job["model_inputs"], **job["calls"][0], labels=job["labels"]).loss
            loss.backward()
        result["loss"] = loss.item()
        model.save_pretrained(job["folder"] + "-again")
        again = AutoModelForCausalLM.from_pretrained(job["folder"] + "-again", trust_remote_code=job["trust"])
        result["after_saving"] = again(**job["model_inputs"], **job["calls"][0]).logits
    return result


if __name__ == "__main__":
    jobs = torch.load(sys.argv[1], weights_only=True)
    torch.save([run(job) for job in jobs], sys.argv[2])
