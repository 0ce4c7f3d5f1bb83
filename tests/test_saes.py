"""A language model's autoencoders: against sae_lens's own figures, planted answers, and a local service."""

import copy
import json
import threading
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from datasets import Dataset
from sae_lens import ActivationsStore, HookedSAETransformer
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler

from utils import explainers, saes
from utils.checks.sae_models import lm_model, lm_sae, lm_store, lm_tokens
from utils.models import load, load_sae, load_tokenizer, sae_layers
from utils.show import saes as pages
from utils.workbook.noise import noise
from utils.world import LABELS, rows, sample, token_labels

PLACES = [("hook_resid_pre", 1), ("attn.hook_z", 0), ("attn.hook_z", 1)]


@pytest.fixture(autouse=True)
def clean_model():
    with torch.no_grad():
        yield
    lm_model().reset_saes()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("lm")


# ---------------------------------------------------------------- sae_lens in use


@pytest.mark.parametrize("place, layer", PLACES)
def test_three_ways_agree_and_the_error_term_makes_the_run_exact(place, layer):
    model, sae, tokens = lm_model(), lm_sae(place, layer), lm_tokens()
    clean = model(tokens)
    with model.saes([sae]):
        in_block = model(tokens)
    model.add_sae(sae)
    added = model(tokens)
    model.reset_saes()
    once = model.run_with_saes(tokens, saes=[sae])
    assert torch.equal(in_block, added) and torch.equal(added, once)
    assert (once - clean).abs().max() > 0.1
    assert torch.equal(model(tokens), clean)
    assert torch.allclose(model.run_with_saes(tokens, saes=[sae], use_error_term=True), clean, atol=1e-4)


def test_hook_names_with_and_without_the_error_term():
    model, sae = lm_model(), lm_sae()
    hook = sae.cfg.metadata.hook_name
    parts = ["input", "acts_pre", "acts_post", "recons", "output"]
    for error in (False, True):
        _, cache = model.run_with_cache_with_saes(lm_tokens(), saes=[sae], use_error_term=error)
        expected = {f"{hook}.hook_sae_{part}" for part in parts + ["error"] * error}
        assert {name for name in cache if "sae" in name} == expected
        assert hook not in cache
    assert saes.acts_name(sae) in expected


def test_what_the_notes_relied_on_is_gone():
    """`hook_layer` gives None without an error, and a store needs its data set."""
    assert lm_sae().cfg.metadata.hook_layer is None and saes.layer_of(lm_sae()) == 1
    with pytest.raises(TypeError, match="dataset"):
        ActivationsStore.from_sae(model=lm_model(), sae=lm_sae())
    nameless = copy.deepcopy(lm_sae())
    nameless.cfg.metadata.hook_name = "ln_final.hook_scale"
    with pytest.raises(ValueError, match="set sae.cfg.metadata.hook_name"):
        saes.layer_of(nameless)


@pytest.mark.parametrize("place, layer", PLACES)
def test_a_fitting_autoencoder_fits(place, layer):
    assert saes.check_fits(lm_model(), lm_sae(place, layer)) is None


def test_a_misfit_says_what_to_do():
    model, sae = lm_model(), lm_sae()
    elsewhere = copy.deepcopy(sae)
    elsewhere.cfg.metadata.hook_name = "blocks.7.hook_resid_pre"
    # sae_lens itself goes on without it.
    assert torch.equal(model.run_with_saes(lm_tokens(), saes=[elsewhere]), model(lm_tokens()))
    wide = copy.deepcopy(sae)
    wide.cfg.metadata.hook_name = "blocks.1.mlp.hook_post"
    for misfit, message in (
        (elsewhere, "of 2 layers does not have: load the model"),
        (wide, "12 numbers, and .* has 48"),
    ):
        for call in (saes.check_fits, lambda m, s: saes.sae_metrics(m, s, lm_tokens())):
            with pytest.raises(ValueError, match=message):
                call(model, misfit)
    with model.saes([sae]), pytest.raises(ValueError, match="reset_saes"):
        saes.get_sae_acts(model, sae, lm_tokens())


def test_hooks_left_on_an_autoencoder_are_said_and_the_advice_works():
    model, sae, tokens = lm_model(), copy.deepcopy(lm_sae()), lm_tokens()
    before = saes.sae_metrics(model, sae, tokens)

    def attach():
        model.add_sae(sae)
        model.add_hook(saes.acts_name(sae), lambda acts, hook: acts * 0)

    attach()
    model.reset_saes()
    model.reset_hooks()  # too late: it does not reach them
    for call in (saes.get_sae_acts, saes.sae_metrics):
        with pytest.raises(ValueError, match="hooks hang on the autoencoder itself.* call its own reset_hooks"):
            call(model, sae, tokens)
    sae.reset_hooks()
    assert saes.sae_metrics(model, sae, tokens) == before
    attach()
    with pytest.raises(ValueError, match=r"attached at .* already: call model.reset_hooks\(\), then model.reset_saes"):
        saes.sae_metrics(model, sae, tokens)
    model.reset_hooks()
    model.reset_saes()
    assert saes.sae_metrics(model, sae, tokens) == before


def test_rows_without_endoftext_are_refused():
    tokens = lm_tokens()
    some = tokens.clone()
    some[2, 0] = 1
    for rows_without in (tokens[:, 1:], some, tokens[:1, 1:]):
        with pytest.raises(ValueError, match=r"a row does not begin with <\|endoftext\|>"):
            saes.sae_metrics(lm_model(), lm_sae(), rows_without)


@pytest.mark.parametrize("place, layer", PLACES)
def test_latents_are_the_encoded_activation(place, layer):
    model, sae, tokens = lm_model(), lm_sae(place, layer), lm_tokens()
    _, cache = model.run_with_cache(tokens)
    assert torch.allclose(saes.get_sae_acts(model, sae, tokens), sae.encode(cache[sae.cfg.metadata.hook_name]))
    assert not model.acts_to_saes


@pytest.mark.parametrize("place, layer", PLACES)
def test_metrics_agree_with_sae_lens(place, layer):
    model, sae, tokens = lm_model(), lm_sae(place, layer), lm_tokens(12)
    config = EvalConfig(
        batch_size_prompts=12, n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1,
        compute_ce_loss=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
    )  # fmt: skip
    store = lm_store(sae, tokens, size=12)
    theirs, _ = run_evals(sae, store, model, ActivationScaler(), config, exclude_special_tokens=[0])
    ours = saes.sae_metrics(model, sae, tokens)
    assert ours["L0"] == pytest.approx(theirs["sparsity"]["l0"], rel=1e-3)
    variance = theirs["reconstruction_quality"]["explained_variance"]
    assert ours["explained_variance"] == pytest.approx(variance, abs=2e-3)
    # Their losses leave out `<|endoftext|>` as an input, ours are over all next tokens: compare with the plain ones.
    assert ours["loss_clean"] == pytest.approx(model(tokens, return_type="loss").item(), rel=1e-4)
    with model.saes([sae]):
        assert ours["loss_sae"] == pytest.approx(model(tokens, return_type="loss").item(), rel=1e-4)


def test_shipped_autoencoders_fit_their_model_and_are_exact_with_the_error_term(tokenizer):
    model = load("lm", cls=HookedSAETransformer)
    tokens = rows(sample(20, 3), tokenizer.backend_tokenizer, 128).long()[:4]
    clean = model(tokens)
    for place in ("resid", "z"):
        for layer in sae_layers(place):
            sae = load_sae(place, layer)
            saes.check_fits(model, sae)
            assert saes.layer_of(sae) == layer
            exact = model.run_with_saes(tokens, saes=[sae], use_error_term=True)
            assert torch.allclose(exact, clean, atol=1e-3), (place, layer)


# ---------------------------------------------------------------- dashboards


def test_batches_hold_no_row_twice_and_a_short_store_says_so():
    tokens = lm_tokens(7)
    store = lm_store(lm_sae(), tokens, size=2)
    batches = saes.token_batches(store, 3)
    assert torch.equal(torch.cat(batches), tokens[:6])
    with pytest.raises(ValueError, match="at most 3 batches"):
        saes.token_batches(store, 4)
    with pytest.raises(ValueError, match="at most 0 batches, .*smaller store_batch_size_prompts"):
        saes.token_batches(lm_store(lm_sae(), tokens, size=8), 1)


def test_a_store_of_plain_text_works(tokenizer):
    model, sae = load("lm", cls=HookedSAETransformer), load_sae("resid", sae_layers("resid")[0])
    texts = Dataset.from_dict({"text": [document.text for document in sample(40, 5)]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = ActivationsStore.from_sae(
            model=model, sae=sae, dataset=texts, streaming=False, store_batch_size_prompts=2
        )
    (tokens,) = saes.token_batches(store, 1)
    assert tokens.shape == (2, 128) and (tokens[:, 0] == tokenizer.bos_token_id).all()


@pytest.mark.parametrize("buffer, no_overlap", [(0, True), (1, True), (2, True), (2, False)])
def test_largest_places_are_the_largest_that_are_allowed(buffer, no_overlap):
    x = torch.randn(4, 17, generator=torch.Generator().manual_seed(buffer))
    places = saes.get_k_largest_indices(x, 1000, buffer, no_overlap).tolist()
    allowed = {(r, p) for r in range(4) for p in range(buffer, 17 - buffer)}
    clash = {a: {b for b in allowed if a[0] == b[0] and abs(a[1] - b[1]) <= 2 * buffer} for a in allowed}
    taken = set()
    for row, position in places:
        assert (row, position) in allowed
        assert x[row, position] == max(x[a] for a in allowed)
        taken |= clash[row, position]
        allowed -= clash[row, position] if no_overlap else {(row, position)}
    assert not allowed  # with so large a k, nothing that fits is left over


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="from 0 to 3"):
        saes.get_k_largest_indices(torch.zeros(2, 7), 1, 4)
    for position in (1, 6):
        with pytest.raises(ValueError, match="reaches beyond"):
            saes.index_with_buffer(torch.zeros(2, 8), torch.tensor([[0, position]]), 2)
    assert saes.index_with_buffer(torch.zeros(2, 8), torch.zeros(0, 2, dtype=torch.long), 2).shape == (0, 5)


def test_a_dead_latent_has_no_examples_and_an_empty_page():
    store = lm_store(lm_sae(), lm_tokens())
    assert saes.fetch_max_activating_examples(lm_model(), lm_sae(), store, 3, 3, 4, 1) == []
    page = pages.dashboard(lm_model(), lm_sae(), store, 3, total_batches=3, k=4, buffer=1).data
    assert "none of these tokens" in page and "Active on 0.00%" in page


def test_logit_weights_of_a_head_latent_are_what_the_model_adds():
    """Put one unit of the latent into hook_z and follow it to the final stream, with nothing else changed."""
    model, sae, tokens = lm_model(), lm_sae("attn.hook_z", 1), lm_tokens(2)
    _, clean = model.run_with_cache(tokens)

    def push(z, hook):
        return z + sae.W_dec[6].reshape(z.shape[2:])

    model.reset_hooks()
    model.add_hook("blocks.1.attn.hook_z", push)
    _, pushed = model.run_with_cache(tokens)
    model.reset_hooks()
    moved = (pushed["attn_out", 1] - clean["attn_out", 1])[0, 0] @ model.W_U
    assert torch.allclose(moved, saes.logit_weights(model, sae, 6), atol=1e-4)


def test_pages_are_static_and_link_only_where_there_is_a_page():
    model, sae = lm_model(), copy.deepcopy(lm_sae())
    store = lm_store(sae, lm_tokens(8, 12))
    page = pages.dashboard(model, sae, store, 5, 4, k=3, buffer=1, f1={"bracket_depth>=2": 0.7, "name": 0.1}).data
    assert "<script" not in page and "neuronpedia" not in page and page.count("<div") == page.count("</div>")
    assert "bracket_depth&gt;=2 0.70" in page and page.count("inline-block") > 10
    assert pages.neuronpedia_link(sae, 5) is None
    sae.cfg.metadata.neuronpedia_id = "gpt2-small/7-res-jb"
    assert pages.neuronpedia_link(sae, 5) == "https://www.neuronpedia.org/gpt2-small/7-res-jb/5"
    assert "neuronpedia.org/gpt2-small/7-res-jb/5" in pages.dashboard(model, sae, store, 5, 4, k=3, buffer=1).data
    figure = pages.show_activation_histogram(model, sae, store, 5, 4)
    acts, share = saes.positive_activations(model, sae, store, 5, 4)
    assert sum(figure.data[0].y) == len(acts) and f"{100 * share:#.3g}%" in figure.layout.title.text


# ---------------------------------------------------------------- ground truth


def test_labelled_rows_are_the_rows_of_training(tokenizer):
    documents = sample(60, 4)
    tokens, truth = saes.labelled_rows(documents, tokenizer, 128)
    assert torch.equal(tokens, rows(documents, tokenizer.backend_tokenizer, 128).long())
    assert truth.shape == (*tokens.shape, len(LABELS)) and not truth[tokens == tokenizer.bos_token_id].any()
    first, labels = token_labels(documents[:1], tokenizer)[0]
    n = min(128, len(first))
    assert torch.equal(tokens[0, :n], first[:n]) and torch.equal(truth[0, :n], labels[:n])
    narrow = saes.labelled_rows(documents, tokenizer, 128, ["country", "name"])[1]
    assert torch.equal(narrow, truth[..., [LABELS.index("country"), LABELS.index("name")]])
    with pytest.raises(ValueError, match="do not fill a row"):
        saes.labelled_rows(documents[:1], tokenizer, 5000)


def test_thresholds_rise_from_the_least_value_and_leave_dead_units_alone():
    values = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    values[:, 1] = values[:, 1].relu()
    values[:, 2] = 0
    thresholds = saes.unit_thresholds(values, 5)
    live = thresholds[:, [0, 1, 3]]
    assert (live.diff(dim=0) > 0).all()
    assert thresholds[0, 0] == values[:, 0].min() and thresholds[0, 1] == values[:, 1][values[:, 1] > 0].min()
    # In even ratios from all to one in a thousand, so that a unit that is never 0 may stand for something rare.
    firings = (values[:, :1] >= thresholds[:, 0]).sum(0).tolist()
    assert firings == [5000, 890, 159, 29, 5]
    assert thresholds[:, 2].isinf().all()
    assert torch.equal(values[:, 1] >= thresholds[0, 1], values[:, 1] > 0)
    assert not saes.f1_scores(values, torch.ones(5000, 1).bool(), thresholds)[:, 0, 2].any()


def test_a_rare_label_is_found_by_a_unit_that_is_never_zero():
    generator = torch.Generator().manual_seed(3)
    labels = torch.rand(20_000, 1, generator=generator) < 0.005
    values = torch.randn(20_000, 6, generator=generator)
    values[:, 4] += 9 * labels[:, 0]
    unit, f1 = saes.best_units(values, labels)
    assert unit.item() == 4 and f1.item() > 0.7  # firing on a tenth of all gives 0.1


def test_precision_and_recall_are_those_of_the_f1():
    generator = torch.Generator().manual_seed(4)
    labels = torch.rand(3000, 4, generator=generator) < 0.2
    values = torch.rand(3000, 9, generator=generator)
    values[:, :4] += labels.float()
    values[:, 2] *= torch.rand(3000, generator=generator) < 0.4  # finds less than half of its label
    unit, f1 = saes.best_units(values, labels)
    precision, recall = saes.precision_and_recall(values, labels, unit)
    assert torch.allclose(2 * precision * recall / (precision + recall), f1, atol=1e-6)
    assert precision[2] > 0.7 and recall[2] < 0.5


def test_documents_are_parted_and_judged_one_by_one(tokenizer):
    tokens, truth = saes.labelled_rows(sample(60, 4), tokenizer, 128)
    kinds = [i for i, label in enumerate(LABELS) if label.startswith("kind:")]
    held = saes.by_document(truth, tokens, tokenizer.bos_token_id)
    assert (held[:, kinds].sum(1) == 1).all()  # each document is of one kind
    whole = ~saes.by_document(~truth, tokens, tokenizer.bos_token_id)
    assert torch.equal(held[:, kinds], whole[:, kinds])  # and all of it is
    numbers = torch.arange(tokens.numel()).reshape(*tokens.shape, 1)
    assert (saes.by_document(numbers, tokens, 0).flatten().diff() > 8).all()
    with pytest.raises(ValueError, match="begin with"):
        saes.by_document(truth, tokens.roll(1, dims=1), 0)
    with pytest.raises(ValueError, match="500 tokens"):
        saes.by_document(truth, tokens, 0, least=500)


def test_a_planted_unit_is_found_and_noise_is_not():
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(4000, 50, generator=generator)
    labels = torch.rand(4000, 3, generator=generator) < 0.1
    values[:, 7] = labels[:, 1].float()
    unit, f1 = saes.best_units(values, labels)
    assert unit[1] == 7 and f1[1] == 1
    # "Always" has an F1 of 2 · 0.1 / 1.1 on a label that holds on a tenth of the tokens.
    assert f1[[0, 2]].max() < 0.25


def test_cover_adds_up_to_the_f1_of_all_together():
    generator = torch.Generator().manual_seed(2)
    fires = torch.rand(300, 12, generator=generator) < 0.1
    label = fires[:, [3, 8]].any(dim=1)
    chosen, history = saes.greedy_cover(fires, label, 6)
    assert sorted(chosen) == [3, 8] and history[-1] == 1
    assert saes.greedy_cover(fires, label, 1)[0] == chosen[:1]
    assert saes.greedy_cover(torch.zeros(5, 2).bool(), torch.ones(5).bool(), 3) == ([], [])


# ---------------------------------------------------------------- auto-interpretation


@pytest.fixture(scope="module")
def world(tokenizer):
    tokens, truth = saes.labelled_rows(sample(120, 6), tokenizer, 128)
    return tokens, truth


def test_world_explainer_finds_a_label_a_token_and_both(tokenizer, world):
    tokens, truth = world
    explainer = explainers.WorldExplainer(tokenizer)
    country = truth[..., LABELS.index("country")].float() * 3
    assert explainer.explain(tokens, country, truth) == "country (3.00)"
    quote = tokenizer.encode('"')[0]
    both = torch.maximum(country, 7.0 * (tokens == quote))
    text = explainer.explain(tokens, both, truth)
    assert set(text.split(", ")) == {'the token "\\"" (7.00)', "country (3.00)"}
    assert torch.allclose(explainer.simulate(text, tokens, truth), both)
    assert explainers.score(explainer, text, tokens, both, truth) == pytest.approx((1, 1), abs=1e-4)
    other = explainers.score(explainer, "country (3.00)", tokens, (tokens == quote).float(), truth)
    assert other[0] < 0.65 and other[1] < 0.1


@pytest.mark.parametrize("seed", range(1, 5))
def test_equal_labels_and_equal_scores_are_told_alike_on_every_machine(tokenizer, world, seed):
    tokens, truth = world
    twice = torch.cat([truth[..., :3], truth[..., :3]], dim=-1)
    explainer = explainers.WorldExplainer(tokenizer, labels=[*"abcdef"])
    acts = truth[..., int(truth[..., :3].flatten(0, 1).sum(0).argmax())].float()
    values, labels = torch.rand(400, 6), torch.rand(400, 3) < 0.3
    thresholds = saes.unit_thresholds(values)
    said, scores = explainer.explain(tokens, acts, twice), saes.f1_scores(values, labels, thresholds)
    with noise(seed):
        assert explainer.explain(tokens, acts, twice).split(" (")[0] == said.split(" (")[0]
        assert torch.equal(saes.f1_scores(values, labels, thresholds), scores)


def test_world_explainer_says_what_it_needs(tokenizer, world):
    tokens, truth = world
    explainer = explainers.WorldExplainer(tokenizer)
    for acts, labels in ((torch.zeros(tokens.shape), truth), (torch.ones(tokens.shape), None)):
        with pytest.raises(ValueError, match="needs the labels"):
            explainer.explain(tokens, acts, labels)
    with pytest.raises(ValueError, match="names neither"):
        explainer.simulate("something about countries", tokens, truth)


def test_language_model_explainer_sees_the_prompt_and_no_label(tokenizer, world):
    tokens, truth = world
    asked = []

    def ask(prompt):
        asked.append(prompt)
        return "names of countries" if "JSON" not in prompt else f"Here it is: {json.dumps([1] * 16)}"

    explainer = explainers.LanguageModelExplainer(tokenizer, ask, k=4, buffer=5)
    country = truth[..., LABELS.index("country")].float()
    assert explainer.explain(tokens, country, truth) == "names of countries"
    assert asked[0].count("<<") >= 4 and "4. " in asked[0] and "label" not in asked[0]
    simulated = explainer.simulate("names of countries", tokens[:2, :16])
    assert simulated.shape == (2, 16) and len(asked) == 3 and "names of countries" in asked[1]
    with pytest.raises(explainers.ServiceError, match="asked for 9 numbers"):
        explainer.simulate("names of countries", tokens[:1, :9])
    explainer.ask = lambda prompt: "I can't do that."
    with pytest.raises(explainers.ServiceError, match="I can't do that"):
        explainer.simulate("names of countries", tokens[:1, :9])


@pytest.fixture
def service(monkeypatch):
    """A service on this machine that records what it gets; `replies` are (status, body) for the next requests."""
    replies, requests = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            requests.append((dict(self.headers), body))
            status, answer = replies.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    for name, (_, model, header) in explainers.SERVICES.items():
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setitem(explainers.SERVICES, name, (url, model, header))
    monkeypatch.delenv("WORKBOOK_EXPLAINER", raising=False)
    yield replies, requests
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "variable, answer, header",
    [
        ("ANTHROPIC_API_KEY", {"content": [{"type": "text", "text": " yes "}]}, ("x-api-key", "placeholder")),
        ("OPENAI_API_KEY", {"choices": [{"message": {"content": "yes"}}]}, ("authorization", "Bearer placeholder")),
    ],
)
def test_ask_speaks_both_services(service, monkeypatch, variable, answer, header):
    replies, requests = service
    monkeypatch.setenv(variable, "placeholder")
    monkeypatch.setenv("WORKBOOK_EXPLAINER", "some-model")
    replies.append((200, json.dumps(answer)))
    assert explainers.ask("Well?") == "yes"
    headers, body = requests[0]
    assert {key.lower(): value for key, value in headers.items()}[header[0]] == header[1]
    assert body["model"] == "some-model" and body["messages"] == [{"role": "user", "content": "Well?"}]


def test_ask_without_a_key_or_with_a_service_that_fails(service, monkeypatch):
    replies, _ = service
    with pytest.raises(ValueError, match="set ANTHROPIC_API_KEY or OPENAI_API_KEY, or use WorldExplainer"):
        explainers.ask("Well?")
    monkeypatch.setenv("OPENAI_API_KEY", "placeholder")
    replies += [(429, "too many requests"), (200, "<html>"), (200, '{"choices": []}'), (200, "[]")]
    for message in ("status 429: too many", "form that is not known", "form that is not known", "form that is not"):
        with pytest.raises(explainers.ServiceError, match=message) as caught:
            explainers.ask("Well?")
        assert "placeholder" not in str(caught.value)
    monkeypatch.setitem(explainers.SERVICES, "OPENAI_API_KEY", ("http://127.0.0.1:9/", "m", lambda key: {}))
    with pytest.raises(explainers.ServiceError, match="did not answer within 2 s"):
        explainers.ask("Well?", timeout=2)
