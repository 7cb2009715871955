"""Gates: which experts a token uses, decided by the token, its sequence or its task."""

from distmoe.moe.gates.base import Gate
from distmoe.moe.gates.build import build_gate
from distmoe.moe.gates.routes import routes_by_task
from distmoe.moe.gates.setting import GateSetting
from distmoe.moe.gates.task_description import encode_descriptions
from distmoe.moe.gates.warm_start import start_as_token

__all__ = ["Gate", "GateSetting", "build_gate", "encode_descriptions", "routes_by_task", "start_as_token"]
