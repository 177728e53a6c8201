"""Sites with different items: known by their text, the score bias stays at its site, only what all share travels."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from client.app import app as client_app
from client.data_source import load_learner, site_settings
from client.learner import Learner
from metarec_shared import wire
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.errors import FederationError, MetaRecError, SettingsError
from metarec_shared.exchange import EvaluateRequest
from metarec_shared.initialization import initial_model
from metarec_shared.settings import Settings
from metarec_shared.sources import load_item_features
from metarec_shared.split import Role
from server.federation import run_federation
from server.run_folder import read_metrics
from simulations.grid import InProcessGrid
from tests.integration.test_in_process_federation import make_grid
from tests.small import small_settings
from tests.small_bert import write_small_bert

COLOURS = ("red", "blue", "green", "grey")
KINDS = ("lamp", "chair", "table", "rug", "vase", "desk", "clock", "sofa", "shelf", "mirror", "bench", "stool")
TEXTS = [f"{colour} {kind} for the house" for colour in COLOURS for kind in KINDS]
SITES: dict[str, slice] = {"north": slice(0, 30), "south": slice(18, 48)}
"""Which of the texts each site sells: some of them both, under ids of their own."""


class SitesGrid(InProcessGrid):
    """Nodes are deployed sites, each answered for by the real ClientApp with a configuration of its own."""

    configs: dict[int, dict[str, Any]]
    settings: Settings
    travelled: set[str]
    last_round = 1000

    def get_node_ids(self) -> Iterable[int]:
        return list(self.configs)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for identifier in message_ids:
            question = self._waiting.pop(identifier, None)
            if question is None:
                continue
            assert isinstance(question, Message)
            if question.metadata.group_id.isdigit() and int(question.metadata.group_id) > self.last_round:
                raise KeyboardInterrupt
            self.travelled |= names_in(question.content)
            node = question.metadata.dst_node_id
            run_config = run_configuration(self.settings)
            context = Context(
                run_id=7, node_id=node, node_config=self.configs[node], state=RecordDict(), run_config=run_config
            )
            question.metadata.__dict__["_message_id"] = identifier
            reply = client_app(question, context)
            self.travelled |= names_in(reply.content)
            yield reply


def run_configuration(settings: Settings) -> dict[str, Any]:
    return {key: value for key, value in settings.flat().items() if key not in ("data.path", "run.out")}


def learner_of(settings: Settings, config: dict[str, Any]) -> Learner:
    """Return the learner that the ClientApp of a site keeps in this process."""
    return load_learner(site_settings(Settings().with_values(run_configuration(settings), "test"), config))


def names_in(content: RecordDict) -> set[str]:
    return {name for record in content.array_records.values() for name in record}


def write_site(folder: Path, name: str, users: int = 120) -> dict[str, Any]:
    """Write a site's data, users of which like one colour, and return its node's configuration."""
    rng = np.random.default_rng(len(name))
    texts = TEXTS[SITES[name]]
    (folder / "data").mkdir(parents=True)
    (folder / "items").mkdir()
    rows = [f"{name}-{place},{text}" for place, text in enumerate(texts)]
    (folder / "items" / "items.csv").write_text("\n".join(["item_id,title", *rows]) + "\n")
    histories = []
    for user in range(users):
        liked = [place for place, text in enumerate(texts) if text.startswith(COLOURS[user % 4])]
        others = [int(place) for place in rng.permutation(len(texts))[:4]]
        chosen = dict.fromkeys([*rng.permutation(liked).tolist(), *others])
        histories += [f"{name} {user},{name}-{place},{time}" for time, place in enumerate(chosen)]
    (folder / "data" / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *histories]) + "\n")
    (folder / "privacy.toml").write_text('[privacy]\nmode = "none"\n')
    return {
        "name": name,
        "data-path": str(folder / "data"),
        "catalogue-path": str(folder / "items"),
        "privacy-file": str(folder / "privacy.toml"),
    }


@pytest.fixture
def sites(tmp_path: Path) -> dict[int, dict[str, Any]]:
    return {5 + place: write_site(tmp_path / name, name) for place, name in enumerate(SITES)}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings of a run whose server has a catalogue of its own, too: three items that nobody else has."""
    write_small_bert(tmp_path / "bert", TEXTS)
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "items.csv").write_text("item_id,title\na,red lamp\nb,blue chair\nc,something else\n")
    return small_settings(
        federation__catalogues="own", model__item_ids=False, text__encoder=str(tmp_path / "bert"),
        data__path=str(tmp_path / "server"), federation__rounds=25, federation__evaluate_every=25,
        federation__min_nodes=2, outer__averaging=0.8, run__out=str(tmp_path / "run"),
    )  # fmt: skip


def grid_of(settings: Settings, sites: dict[int, dict[str, Any]]) -> SitesGrid:
    plain = small_settings()
    grid = make_grid(plain, fold=False, kind=SitesGrid)
    assert isinstance(grid, SitesGrid)
    grid.configs, grid.settings, grid.travelled = sites, settings, set()
    return grid


def test_sites_with_different_items_learn_together_and_nothing_with_a_row_an_item_travels(
    settings: Settings, sites: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    grid = grid_of(settings, sites)
    run_federation(grid, settings)
    rounds = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["nodes"] for line in rounds] == [2] * 25
    first, last = (np.mean([line["train_loss"] for line in part]) for part in (rounds[:5], rounds[-5:]))
    assert last < first - 0.02, (first, last)
    assert not {"item_bias", "item_ids"} & grid.travelled
    assert "projection.weight" in grid.travelled
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.items.catalogue.titles == ("red lamp", "blue chair", "something else")
    assert not checkpoint.parameters["item_bias"].any(), "the server knows nobody's popularity"
    assert not checkpoint.has_additions


def test_what_was_learned_together_helps_each_site_over_what_was_drawn(
    settings: Settings, sites: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    run_federation(grid_of(settings, sites), settings)
    trained = load_checkpoint(tmp_path / "run").parameters
    drawn = dict(initial_model(settings, load_item_features(settings).text).named_parameters())
    for node in sites:
        judged = [
            judge(settings, sites, node, {name: value.detach() for name, value in parameters.items()})
            for parameters in (drawn, trained)
        ]
        assert judged[1] > judged[0], (node, judged)


def judge(
    settings: Settings, sites: dict[int, dict[str, Any]], node: int, parameters: dict[str, torch.Tensor]
) -> float:
    """Return nDCG of a site's validation users, as the site itself says."""
    grid = grid_of(settings, sites)
    shared = {name: value for name, value in parameters.items() if name not in ("item_bias", "item_ids")}
    request = EvaluateRequest(
        role=Role.VALIDATION, orders=("random",), supports=(3,), adapt=True, draws=1, sampling_rate=1.0,
        rating_scale=None, catalogue=load_learner(settings).catalogue,
    )  # fmt: skip
    content = wire.pack_request(request, wire.pack_parameters(shared))
    (reply,) = grid.send_and_receive([grid.create_message(content, "evaluate", node, "1")])
    (cell,) = wire.unpack_evaluation(reply.content, [1]).cells
    return float(cell.sums["ndcg@10"][0]) / cell.users


def test_the_bias_of_a_site_is_its_own_popularity(settings: Settings, sites: dict[int, dict[str, Any]]) -> None:
    grid = grid_of(settings, sites)
    run_federation(grid, settings)
    for config in sites.values():
        learner = learner_of(settings, config)
        bias = learner.model.item_bias.detach()
        assert len(bias) == 30
        torch.testing.assert_close(bias.exp().sum(), torch.tensor(1.0), atol=1e-4, rtol=0.0)
        assert bias.std() > 0.05


def test_a_site_that_protects_its_users_keeps_no_bias_of_them(settings: Settings, tmp_path: Path) -> None:
    from client.privacy.ledger import Ledger
    from client.privacy.policy import load_policy

    config = write_site(tmp_path / "guarded" / "north", "north", users=160)
    folder = Path(config["privacy-file"]).parent
    (folder / "privacy.toml").write_text(
        '[privacy]\nmode = "site"\nusers = 120\nnoise-multiplier = 1.0\nsampling-rate = 0.1\npopularity-noise = 10.0\n'
        'witness = "witness.json"\n'
    )
    files = folder / "ledger.sqlite", folder / "witness.json"
    Ledger.create(*files, epsilon=8.0, delta=1e-5, plan=load_policy(folder / "privacy.toml").plan())
    private = settings.with_values(
        {
            "privacy.mode": "site", "privacy.noise-multiplier": 1.0, "privacy.sampling-rate": 0.1,
            "privacy.popularity-noise": 10.0, "federation.clip-norm": 1.0, "federation.rounds": 2,
            "federation.min-nodes": 1,
        },
        "test",
    )  # fmt: skip
    run_federation(grid_of(private, {5: config}), private)
    assert not learner_of(private, config).model.item_bias.any()
    mechanisms = [one.mechanism.name for one in Ledger.open(*files).releases()]
    assert mechanisms == ["meta-update", "meta-update"], "item counts are not asked for"


def test_a_run_is_resumed_with_other_items_at_the_server(
    settings: Settings, sites: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    short = settings.with_values({"federation.rounds": 2, "federation.evaluate-every": 2}, "test")
    grid = grid_of(short, sites)
    grid.last_round = 1
    with pytest.raises(KeyboardInterrupt):
        run_federation(grid, short)
    items = tmp_path / "server" / "items.csv"
    items.write_text(items.read_text() + "d,grey sofa\ne,green bench\n")
    again = short.with_values({"run.resume": True}, "test")
    grid = grid_of(again, sites)
    run_federation(grid, again)
    assert "item_bias" not in grid.travelled
    checkpoint = load_checkpoint(tmp_path / "run")
    assert len(checkpoint.items.positions) == len(checkpoint.parameters["item_bias"]) == 5


def test_sites_with_another_text_encoder_are_refused(
    settings: Settings, sites: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    write_small_bert(tmp_path / "other", TEXTS[::-1][:20])
    grid = grid_of(settings, sites)
    grid.settings = settings.with_values({"text.encoder": str(tmp_path / "other")}, "test")
    with pytest.raises((FederationError, MetaRecError), match="another catalogue or text encoder"):
        run_federation(grid, settings)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model.item-ids": True}, "needs model.item-ids = False"),
        ({"text.encoder": "builtin"}, "needs one text encoder for all nodes"),
        ({"adaptation.candidates": 10}, "needs adaptation.candidates = 0"),
        ({"model.target": "rating"}, "needs model.target = 'ranking'"),
    ],
)
def test_what_has_a_row_an_item_is_refused(settings: Settings, values: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        settings.with_values(values, "test")


def test_a_simulation_has_no_sites_of_their_own(settings: Settings) -> None:
    from client.data_source import simulated_nodes

    with pytest.raises(MetaRecError, match="for deployed sites"):
        simulated_nodes(settings, 2, np.array([0]), np.array([1], dtype=np.uint64))
