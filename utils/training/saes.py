"""Sparse autoencoders of pico-gpt, trained with sae_lens's own trainers on world text."""

import logging
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.training.mixing_buffer import mixing_buffer
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_lens import HookedTransformer

from utils.models import load, load_tokenizer
from utils.runtime import device
from utils.training.config import SAERun
from utils.training.loop import autocasts
from utils.world import rows, sample

# World text that neither the language model nor any measurement has seen.
FIRST_SAE_SEED = 2_000_000
DOCUMENTS_PER_SHARD = 2_000
ROWS = 64  # of text, through the model at once


@torch.no_grad()
def activations(model: HookedTransformer, settings: SAERun) -> Iterator[Float[Tensor, "token d_in"]]:
    """The activations at the hook on fresh world text, without end, a few thousand tokens at a time."""
    tokenizer = load_tokenizer()
    layer = int(settings.hook_name.split(".")[1])
    shard = 0
    while True:
        tokens = rows(sample(DOCUMENTS_PER_SHARD, FIRST_SAE_SEED + shard), tokenizer, settings.context).long()
        for some in tokens.split(ROWS):
            _, cache = model.run_with_cache(some, names_filter=settings.hook_name, stop_at_layer=layer + 1)
            found = cache[settings.hook_name]
            # hook_z is [batch seq head d_head]: the heads side by side are one vector.
            yield found.flatten(0, 1).flatten(1)
        shard += 1


def train(settings: SAERun, folder: Path, model: HookedTransformer | None = None) -> Path:
    """Train one autoencoder and save it in sae_lens's format, in 16 bits, under `folder`; returns its folder.

    The folder appears when the training is finished: a run that was killed leaves nothing behind.
    """
    logging.getLogger("sae_lens").setLevel(logging.CRITICAL)
    torch.manual_seed(0)
    begun = time.monotonic()
    model = load("lm") if model is None else model
    enough = min(16, math.ceil(settings.n_tokens / (ROWS * settings.context)))
    mean = torch.cat(list(islice(activations(model, settings), enough))).mean(dim=0)
    centred = (found - mean for found in activations(model, settings))
    stream = mixing_buffer(64 * settings.batch_tokens, settings.batch_tokens, centred)
    kind = {"reshape_activations": "hook_z"} if settings.hook_name.endswith("hook_z") else {}
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=model.cfg.d_model if not kind else model.cfg.n_heads * model.cfg.d_head,
            d_sae=settings.d_sae,
            k=settings.k,
            normalize_activations="expected_average_only_in",
            device=str(model.cfg.device),
            **kind,
        )
    )
    steps = settings.n_tokens // settings.batch_tokens
    SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=settings.n_tokens,
            train_batch_size_samples=settings.batch_tokens,
            lr=settings.learning_rate,
            lr_end=settings.learning_rate / 30,
            lr_warm_up_steps=100,
            lr_decay_steps=steps // 3,
            dead_feature_window=50,
            n_batches_for_norm_estimate=20,
            device=str(model.cfg.device),
            autocast=autocasts(torch.device(model.cfg.device)),
        ),
        sae=sae,
        data_provider=stream,
    ).fit()
    # The decoder's bias is taken off the input and put back on the output: with the mean in it, both are as trained.
    sae.b_dec.data += mean
    metadata = sae.cfg.metadata
    metadata.hook_name, metadata.context_size, metadata.prepend_bos = settings.hook_name, settings.context, True
    metadata.model_name = "pico-gpt"
    hardware = "one CPU core, bfloat16 products" if model.cfg.device == "cpu" else str(model.cfg.device)
    minutes = round((time.monotonic() - begun) / 60, 1)
    metadata.training = {"settings": asdict(settings), "hardware": hardware, "minutes": minutes}
    target, part = folder / settings.name, folder / f"{settings.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    weights, _ = sae.save_inference_model(part)
    # Stored in 16 bits, computed in 32.
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return target


def with_runner(settings: SAERun, folder: Path, source: str | None = None, dataset: str | None = None, documents=2_000):
    """The same kind of autoencoder by sae_lens's own runner, for any model and text on the hub; returns it.

    Without `source` it reads `load("lm")` and world text, so that the call can be tried where no network is.

    Args:
        folder: where sae_lens writes it.
        source: a model's name for transformer_lens, as "gpt2-small" or "meta-llama/Llama-3.1-8B".
        dataset: a data set on the hub with a column `text`.
        documents: of world text, where no data set is named.
    """
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig

    model = load("lm") if source is None else HookedTransformer.from_pretrained(source, device=str(device()))
    text = None
    if dataset is None:
        found = rows(sample(documents, FIRST_SAE_SEED), load_tokenizer(), settings.context)
        text = Dataset.from_dict({"tokens": found.tolist()})
    kind = {"reshape_activations": "hook_z"} if settings.hook_name.endswith("hook_z") else {}
    d_in = model.cfg.n_heads * model.cfg.d_head if kind else model.cfg.d_model
    config = LanguageModelSAERunnerConfig(
        sae=BatchTopKTrainingSAEConfig(
            d_in=d_in,
            d_sae=settings.d_sae,
            k=settings.k,
            normalize_activations="expected_average_only_in",
            **kind,
        ),
        model_name=source or "pico-gpt",
        hook_name=settings.hook_name,
        dataset_path=dataset or "",
        is_dataset_tokenized=dataset is None,
        context_size=settings.context,
        training_tokens=settings.n_tokens,
        train_batch_size_tokens=settings.batch_tokens,
        lr=settings.learning_rate,
        lr_warm_up_steps=100,
        lr_decay_steps=settings.n_tokens // settings.batch_tokens // 3,
        n_batches_in_buffer=16,
        store_batch_size_prompts=16,
        n_batches_for_norm_estimate=20,
        n_eval_batches=1,
        device=str(model.cfg.device),
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=str(folder),
        verbose=False,
    )
    return LanguageModelSAETrainingRunner(config, override_dataset=text, override_model=model).run()
