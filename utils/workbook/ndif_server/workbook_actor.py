"""NDIF's model actor on one device, the CPU too: what of ndif 0.1.2's needs CUDA is left out.

Runs in NDIF's environment, named by `NDIF_DEFAULT_MODEL_ACTOR_CLASS`.
"""

import gc
import importlib.abc
import os
import sys

import ray
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel

LACKING = ("utils", "jaxtyping", "transformer_lens", "sae_lens", "plotly")


class Lacking(importlib.abc.MetaPathFinder):
    """The environment shares the workbook's packages; what no stock server has can't be imported from it."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in LACKING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class ModelDeployment(BaseModelDeployment):
    CACHEABLE = False  # parking moves weights from GPU to CPU: nothing to park here

    def load_from_disk(self):
        sys.meta_path.insert(0, Lacking())
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device=os.environ["WORKBOOK_DEVICE"], **self.kwargs
        )
        model._module.requires_grad_(False)
        return model

    def cleanup(self):
        self.kill_switch.clear()
        self.kill_reason = None
        self.execution_ident = None
        self.model.interleaver.cancel()
        gc.collect()


@ray.remote(num_cpus=0, max_restarts=-1)
class ModelActor(ModelDeployment):
    pass
