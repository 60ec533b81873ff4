"""L1RA: gates and rank updates, against closed forms, plain LoRA and peft alone."""

import copy
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import nn

from rlsparse.batch import Problem
from rlsparse.components.adapter.base import NoAdapter
from rlsparse.components.adapter.l1ra import GatedMatrices, L1ra
from rlsparse.components.adapter.reallocation import Room, even_ranks
from rlsparse.components.component import describe
from rlsparse.config.schema import ConfigError
from rlsparse.execution.preflight import preflight
from rlsparse.model.packing import can_pack, packed_log_probs
from rlsparse.model.policy import Policy, encode_prompt, token_log_probs
from rlsparse.model.source import EMBEDDED
from rlsparse.rollout import Request
from rlsparse.run import run
from rlsparse.runtime.rng import stream
from rlsparse.storage.summary import headline
from rlsparse.training.update import set_learning_rates
from tests.conftest import built, composed
from tests.test_objective import assert_same, gradient, updated
from tests.test_packed import FAMILIES, family, ragged
from tests.test_rollout import engine
from tests.test_run import SHORT, folder_of, rows, without_times

IDS = torch.tensor([[5, 6, 7, 8, 9], [11, 3, 12, 4, 13]])
# a third of the gates falls to 0 within a few steps
FIRES = ("adapter=l1ra", "adapter.gate_lr=0.3", "adapter.l1=1", "adapter.update_every=0.34")


def l1ra(policy, *overrides, rank=4, seed=0) -> GatedMatrices:
    return built("adapter=l1ra", *overrides).adapter.attach(policy, rank, seed)


def gates(adapter):
    return {name: value for name, value in adapter.state().items() if name.endswith(".c")}


@torch.no_grad()
def set_gates(adapter, generator, closed=0.3):
    """Set random gates, a share of them closed, and matrices that are not zero, so that a component has an effect."""
    for layer in adapter.layers.values():
        A = layer.lora_A["default"].parametrizations.weight
        c = A[0].c
        c.copy_(0.2 + 0.8 * torch.rand(c.shape, generator=generator))
        c[torch.rand(c.shape, generator=generator) < closed] = 0.0
        B = layer.lora_B["default"].weight
        B.copy_(0.03 * torch.randn(B.shape, generator=generator))


def train_step(policy, optimizer, ids=IDS):
    optimizer.zero_grad()
    policy.model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def logits(policy):
    with torch.no_grad():
        return policy.model(input_ids=IDS).logits


# --- the gates ---------------------------------------------------------------------------------------------------


def test_proximal_step_of_the_gates_is_the_closed_form(tiny):
    adapter = l1ra(tiny, "adapter.l1=0.05", "adapter.gate_lr=0.2")
    optimizer = adapter.optimizer(1e-3, 0.0)
    c = optimizer.param_groups[1]["params"][0]
    with torch.no_grad():
        c.copy_(torch.tensor([1.0, 0.5, 0.009, 1.2]))
    c.grad = torch.zeros_like(c)  # Adam does not move: the L1 term alone does
    optimizer.step()
    # eta x lambda = 0.2 x 0.05 = 0.01; the third is less than that away from 0, the last is clamped
    assert torch.allclose(c, torch.tensor([0.99, 0.49, 0.0, 1.0]))
    # the same by its definition: argmin over [0, 1] of (x - c)^2 / 2 + eta lambda |x|, on a fine grid
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    for before, after in zip((1.0, 0.5, 0.009, 1.2), c.tolist(), strict=True):
        assert after == pytest.approx(float(grid[((grid - before) ** 2 / 2 + 0.01 * grid).argmin()]), abs=2e-5)


def test_gates_follow_the_schedule_with_a_rate_of_their_own_and_no_weight_decay(tiny):
    config = composed("train.lr=1", "train.schedule=linear", "train.steps=4", "train.weight_decay=0.3")
    adapter = l1ra(tiny, "adapter.gate_lr=0.2", "adapter.l1=0.5")
    optimizer = adapter.optimizer(config.train.lr, config.train.weight_decay)
    set_learning_rates(optimizer, 3, config.train)  # half of the steps are done
    matrices, gated = optimizer.param_groups
    assert (matrices["lr"], gated["lr"]) == (0.5, 0.1)
    assert (matrices["weight_decay"], gated["weight_decay"]) == (0.3, 0.0)
    for p in adapter.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.allclose(c, torch.full_like(c, 0.95)) for c in gates(adapter).values())  # 1 - 0.1 x 0.5


def test_l1ra_with_gates_that_do_not_move_is_lora(tiny):
    """Without L1 and with a vanishing gate rate, three optimizer steps equal those of plain LoRA."""
    still = ("adapter=l1ra", "adapter.l1=0", "adapter.gate_lr=1e-30")
    states = []
    for overrides in ((), still):
        policy = copy.deepcopy(tiny)
        adapter = built(*overrides).adapter.attach(policy, 4, 3)
        optimizer = adapter.optimizer(1e-2, 0.0)
        for _ in range(3):
            train_step(policy, optimizer)
        states.append(adapter.state())
    plain, gated = states
    for name, value in plain.items():
        assert torch.allclose(value, gated[name], atol=1e-6), name


def test_l2_penalty_changes_the_gradient_of_the_matrices_and_not_of_the_gates(tiny):
    """The penalty is a part of algorithm=tspmo."""
    config = ("adapter=l1ra", "objective.l2=0", "algorithm=grpo")
    grads = []
    for l2 in ("0", "0.5"):
        grads.append(updated(tiny, *config, f"objective.l2={l2}", lr=0.0)[0])
    adapter = l1ra(copy.deepcopy(tiny))
    is_gate = torch.cat([torch.full((p.numel(),), p.dim() == 1) for p in adapter.parameters()])
    assert torch.equal(grads[0][is_gate], grads[1][is_gate])
    assert not torch.equal(grads[0][~is_gate], grads[1][~is_gate])


# --- the start of A ----------------------------------------------------------------------------------------------


def rows_of_A(adapter):
    return [value for name, value in adapter.state().items() if name.endswith(".A")]


def test_normal_start_of_A_has_the_standard_deviation_of_one_over_the_rank(tiny):
    plain = logits(tiny)
    policies = [copy.deepcopy(tiny) for _ in range(4)]
    one, two = (l1ra(policy, "adapter.init=normal", rank=16, seed=5) for policy in policies[:2])
    values = torch.cat([A.flatten() for A in rows_of_A(one)]) * 16  # N(0, 1) if A is N(0, 1 / 16^2)
    assert len(values) == 16 * sum(layer.in_features for layer in one.layers.values()) == 55_296
    # 55,296 values: standard errors of mean and standard deviation 0.004 and 0.003
    assert abs(float(values.mean())) < 0.02
    assert float(values.std()) == pytest.approx(1, abs=0.015)
    assert float((values.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.01)  # uniform: 1 / sqrt(3) = 0.577
    assert torch.equal(logits(policies[0]), plain)  # B is 0
    assert all(torch.equal(a, b) for a, b in zip(rows_of_A(one), rows_of_A(two), strict=True))
    other = l1ra(policies[2], "adapter.init=normal", rank=16, seed=6)
    assert not torch.equal(rows_of_A(one)[0], rows_of_A(other)[0])
    # against peft's start on the same module, uniform in +-1/sqrt(in), so 1/sqrt(3 in): larger by sqrt(3 in) / r
    peft = built("adapter=lora").adapter.attach(policies[3], 16, 5)
    inner = next(iter(one.layers.values())).in_features
    ratio = float(rows_of_A(one)[0].std() / rows_of_A(peft)[0].std())
    assert ratio == pytest.approx((3 * inner) ** 0.5 / 16, rel=0.06)


def test_later_rows_of_a_normal_start_have_the_rank_before_the_first_step_too(tiny):
    """A budget of 50 gives 8 adapters rank 3 and 13 rank 2; then new rows replace all components but one of each."""
    adapter = l1ra(tiny, "adapter.init=normal", "adapter.budget=50", "adapter.exclude_pruned=false")
    initial = adapter.ranks()
    adapter.optimizer(1e-2, 0.0)
    drawn = {3: [], 2: []}
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.lora_A["default"].parametrizations.weight[0].c[1:] = 0.0
    before = rows_of_A(adapter)
    adapter.move_ranks(torch.Generator().manual_seed(0))
    for A, old, (name, rank) in zip(rows_of_A(adapter), before, initial.items(), strict=True):
        assert torch.equal(A[0], old[0])  # what stays is not drawn again
        assert len(A) == adapter.ranks()[name] > 1
        drawn[rank] += [old.flatten(), A[1:].flatten()]
    for rank, parts in drawn.items():
        both = torch.cat(parts)
        assert len(both) > 3_000  # a standard error of 1.3 % at most
        assert float(both.std()) == pytest.approx(1 / rank, rel=0.05)


# --- which adapters get the ranks ---------------------------------------------------------------------------------


RULES = L1ra(
    scale=2.0,
    target_modules="all-linear",
    layers="all",
    init="peft",
    budget=None,
    budget_of="ranks",
    l1=1e-3,
    gate_lr=0.02,
    update_every=0.1,
    threshold=1e-10,
    threshold_adds_step=False,
    reassign=True,
    exclude_pruned=True,
    min_rank=1,
)


def moved(gates_, budget, most=(8, 8, 8, 8), costs=(1, 1, 1, 1), gate_lr=0.02, **settings):
    tensors = [torch.tensor(g) for g in gates_]
    rooms = [Room(*pair) for pair in zip(most, costs[: len(most)], strict=True)]
    changes = replace(RULES, **settings).reallocate(tensors, rooms, budget, gate_lr)
    return [(change.kept.tolist(), change.added) for change in changes]


def even(budget, most, costs=(1, 1, 1)):
    return even_ranks(budget, [Room(*pair) for pair in zip(most, costs, strict=True)])


def test_freed_ranks_go_one_each_in_turn_to_the_adapter_with_the_largest_smallest_gate_first():
    gates_ = [[0.9, 0.0, 0.0], [0.3, 0.8], [0.5, 0.6], [0.4]]
    # two are free; the smallest gate of adapter 2, 0.5, is the largest, followed by 0.4 of adapter 3
    assert moved(gates_, budget=8) == [([0], 0), ([0, 1], 0), ([0, 1], 1), ([0], 1)]
    # four free for three takers: one each in the order 2, 3, 1, and the fourth to 2 again
    assert moved(gates_, budget=10) == [([0], 0), ([0, 1], 1), ([0, 1], 2), ([0], 1)]
    # an adapter that was pruned may take ranks too: its smallest remaining gate is 0.9
    assert moved(gates_, budget=8, exclude_pruned=False) == [([0], 1), ([0, 1], 0), ([0, 1], 1), ([0], 0)]
    assert moved(gates_, budget=8, reassign=False) == [([0], 0), ([0, 1], 0), ([0, 1], 0), ([0], 0)]


def test_reallocation_keeps_the_minimum_rank_and_exceeds_no_matrix():
    assert moved([[0.0, 0.0], [0.0]], budget=3, most=(8, 8)) == [([0], 0), ([0], 1)]  # only the first has lost one
    assert moved([[0.0, 0.2, 0.0], [1.0]], budget=4, most=(8, 8), min_rank=2) == [([0, 1], 0), ([0], 1)]
    assert moved([[0.0, 0.0, 0.7], [0.5, 0.5]], budget=5, most=(8, 3)) == [([2], 0), ([0, 1], 1)]  # one stays free
    assert moved([[0.5, 0.04], [0.5]], budget=3, most=(8, 8), threshold=0.05) == [([0], 0), ([0], 1)]


def test_even_ranks_spread_the_budget_as_far_as_each_matrix_allows():
    assert even(8, [8, 8, 8]) == [3, 3, 2]
    assert even(20, [8, 4, 8]) == [8, 4, 8]  # the others get what the second cannot hold
    assert even(21, [8, 4, 8]) == [8, 4, 8]


def test_threshold_with_the_step_added_removes_gates_that_the_next_step_would_close():
    # gate_lr x l1 = 0.02 x 5e-3 = 1e-4
    gates_ = [[1.0, 1.01e-4], [1.0, 0.99e-4], [1.0, 1.0]]
    authors = {"l1": 5e-3, "threshold_adds_step": True}
    assert moved(gates_, 6, most=(8,) * 3, **authors) == [([0, 1], 0), ([0], 0), ([0, 1], 1)]
    # half of the learning rate, half of the step: 0.5e-4
    assert moved(gates_, 6, most=(8,) * 3, gate_lr=0.01, **authors) == [([0, 1], 0)] * 3
    assert moved(gates_, 6, most=(8,) * 3, l1=5e-3) == [([0, 1], 0)] * 3
    # it is added: 0.02 x 0.05 + 0.3 = 0.301
    assert moved([[1.0, 0.3005], [1.0, 0.3015]], 4, (8, 8), l1=0.05, threshold=0.3, threshold_adds_step=True) == [
        ([0], 0),
        ([0, 1], 1),
    ]


@pytest.mark.parametrize(("step", "removed"), [(1, 1), (3, 0)])
def test_threshold_with_the_step_added_follows_the_schedule_of_the_gates(tiny, step, removed):
    config = composed("train.lr=1", "train.schedule=linear", "train.steps=4")
    adapter = l1ra(tiny, "adapter.gate_lr=0.2", "adapter.l1=0.5", "adapter.threshold_adds_step=true")
    optimizer = adapter.optimizer(config.train.lr, 0.0)
    with torch.no_grad():
        optimizer.param_groups[1]["params"][0][2] = 0.08
    set_learning_rates(optimizer, step, config.train)  # 0.2 at the first step, 0.1 after half of them
    changes = adapter.move_ranks(torch.Generator().manual_seed(0))  # thresholds 0.2 x 0.5 = 0.1 and 0.05
    assert sum(4 - len(change.kept) for change in changes) == removed


def test_parameters_as_budget_are_given_to_components_that_fit_the_rest():
    gates_ = [[0.9, 0.0, 0.0], [0.3, 0.8], [0.5, 0.6], [0.4]]
    costs = (7, 3, 5, 2)
    # kept: 1, 2, 2, 1 components, 7 + 6 + 10 + 2 = 25; adapters 2, 3 and 1 take in turn
    assert moved(gates_, 40, costs=costs) == [([0], 0), ([0, 1], 1), ([0, 1], 2), ([0], 1)]  # 5 + 2 + 3 + 5 = 15
    assert moved(gates_, 39, costs=costs) == [([0], 0), ([0, 1], 1), ([0, 1], 1), ([0], 3)]  # 5 + 2 + 3, then 2 + 2
    assert moved(gates_, 29, costs=costs) == [([0], 0), ([0, 1], 0), ([0, 1], 0), ([0], 2)]  # 5 is more than 4
    assert moved(gates_, 26, costs=costs) == [([0], 0), ([0, 1], 0), ([0, 1], 0), ([0], 0)]  # 1 stays free


def test_costs_in_parameters_give_the_parameters_that_the_authors_report():
    """Their run on Llama-3.1-8B ended with these ranks, summed over its 32 layers, and 45,155,840 parameters."""
    hidden, narrow, wide = 4096, 1024, 14336
    shapes = {"q": (hidden, hidden), "k": (hidden, narrow), "v": (hidden, narrow), "o": (hidden, hidden)}
    shapes |= {"gate": (hidden, wide), "up": (hidden, wide), "down": (wide, hidden)}
    ranks = {"q": 396, "k": 434, "v": 412, "o": 546, "gate": 711, "up": 586, "down": 499}
    assert sum(ranks.values()) == 16 * 7 * 32
    config = replace(RULES, budget_of="parameters")
    rooms = {name: config.room(SimpleNamespace(in_features=a, out_features=b)) for name, (a, b) in shapes.items()}
    assert sum(rank * rooms[name].cost for name, rank in ranks.items()) == 45_155_840
    assert rooms["k"].most == narrow


def given_one_by_one(free, ranks, order, rooms):
    """The same without turns that are lists: one adapter after the other, until a whole turn has given nothing."""
    ranks, unsuccessful = list(ranks), 0
    for i in itertools.cycle(order):
        if ranks[i] < rooms[i].most and rooms[i].cost <= free:
            ranks[i] += 1
            free -= rooms[i].cost
            unsuccessful = 0
        else:
            unsuccessful += 1
        if unsuccessful == len(order):
            return ranks
    return ranks


adapters = st.lists(
    st.tuples(st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=1, max_size=5), st.integers(1, 9)),
    min_size=1,
    max_size=5,
)


@examples(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(adapters, st.integers(5, 7), st.integers(0, 40), st.booleans(), st.integers(1, 2))
def test_reallocation_by_parameters_equals_giving_one_by_one(some, most, more, exclude_pruned, min_rank):
    gates_, costs = [one for one, _ in some], tuple(cost for _, cost in some)
    rooms = [Room(most, cost) for cost in costs]
    budget = sum(len(one) * cost for one, cost in some) + more
    found = moved(gates_, budget, (most,) * len(some), costs, exclude_pruned=exclude_pruned, min_rank=min_rank)
    kept, after = [kept for kept, _ in found], [len(kept) + added for kept, added in found]
    for one, indices in zip(gates_, kept, strict=True):
        closed = sum(c == 0 for c in one)
        assert len(indices) == max(len(one) - closed, min(min_rank, len(one)))
    order = [i for i, one in enumerate(gates_) if not exclude_pruned or len(kept[i]) == len(one)]
    order.sort(key=lambda i: -min(gates_[i][j] for j in kept[i]))
    free = budget - sum(len(indices) * cost for indices, cost in zip(kept, costs, strict=True))
    assert after == given_one_by_one(free, [len(indices) for indices in kept], order, rooms)
    assert sum(rank * cost for rank, cost in zip(after, costs, strict=True)) <= budget


@examples(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=4), st.integers(0, 120))
def test_even_ranks_by_parameters_are_the_most_even_of_all_that_fit(some, budget):
    rooms = [Room(*pair) for pair in some]
    ranks = even(budget, *zip(*some, strict=True))
    cost = sum(rank * room.cost for rank, room in zip(ranks, rooms, strict=True))
    assert cost <= budget
    # the largest common rank of all assignments whose ranks differ by at most one where the matrices allow it
    fitting = [
        tuple(min(k, room.most) for room in rooms)
        for k in range(5)
        if sum(min(k, room.most) * room.cost for room in rooms) <= budget
    ]
    common = fitting[-1]
    assert all(0 <= rank - low <= 1 for rank, low in zip(ranks, common, strict=True))
    missed = [room.cost for rank, low, room in zip(ranks, common, rooms, strict=True) if rank == low < room.most]
    assert all(one > budget - cost for one in missed)  # those who got no further one had no room for it


def test_even_ranks_by_parameters_do_not_spend_the_rest_on_small_components():
    # all get 2 for 2 x 40 = 80; of the rest of 25 the first takes 5, the second (30) cannot, the third takes 5
    assert even(105, [8, 8, 8], [5, 30, 5]) == [3, 2, 3]
    assert even(105, [8, 8, 2], [5, 30, 5]) == [3, 2, 2]
    assert even(1000, [8, 1, 2], [5, 30, 5]) == [8, 1, 2]


# --- what a rank update keeps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", *FAMILIES])
@pytest.mark.parametrize("settings", [(), ("adapter.exclude_pruned=false",), ("adapter.min_rank=2",)], ids=str)
def test_random_rank_updates_keep_function_budget_shapes_and_optimizer_state(tiny, name, settings):
    policy = tiny if name == "tiny" else family(tiny, name)
    adapter = l1ra(policy, *settings)
    optimizer = adapter.optimizer(1e-2, 0.0)
    generator = torch.Generator().manual_seed(3)
    budget, least = adapter.budget, adapter._config.min_rank
    assert budget == 4 * len(adapter.layers)
    distributions = set()
    for turn in range(8):
        train_step(policy, optimizer)
        set_gates(adapter, generator, closed=(0.1, 0.3, 0.9)[turn % 3])
        before = logits(policy)
        adapter.move_ranks(generator)
        assert float((logits(policy) - before).abs().max()) < 1e-5
        ranks = list(adapter.ranks().values())
        distributions.add(tuple(ranks))
        assert sum(ranks) <= budget
        assert min(ranks) >= least
        shapes = {name: tuple(value.shape) for name, value in adapter.state().items()}
        for module, rank in adapter.ranks().items():
            assert (shapes[f"{module}.A"][0], shapes[f"{module}.B"][1], shapes[f"{module}.c"]) == (rank, rank, (rank,))
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in trained} == {id(p) for p in adapter.parameters()}
        assert len(trained) == len(adapter.parameters())
        assert {id(p) for p in optimizer.state} <= {id(p) for p in trained}
        assert all(state["exp_avg"].shape == p.shape for p, state in optimizer.state.items())
    assert len(distributions) > 4  # they did move


def test_rank_update_changes_the_logits_in_proportion_to_the_gates_it_removes(tiny):
    """Gates below the threshold are removed: the logits change by what those components contributed."""
    changes = []
    for small in (1e-2, 1e-3):
        policy = copy.deepcopy(tiny)
        adapter = l1ra(policy, "adapter.threshold=0.1")
        adapter.optimizer(1e-2, 0.0)
        generator = torch.Generator().manual_seed(0)
        set_gates(adapter, generator)
        with torch.no_grad():
            for layer in adapter.layers.values():
                c = layer.lora_A["default"].parametrizations.weight[0].c
                c[c == 0] = small
        before = logits(policy)
        adapter.move_ranks(generator)
        changes.append(float((logits(policy) - before).norm()))
    assert changes[0] / changes[1] == pytest.approx(10, rel=0.1)


def test_moments_of_survivors_are_bit_equal_and_new_components_start_without_momentum(tiny):
    adapter = l1ra(tiny)
    optimizer = adapter.optimizer(1e-2, 0.0)
    for _ in range(3):
        train_step(tiny, optimizer)
    names = list(adapter.layers)
    layers = [adapter.layers[name] for name in names]
    with torch.no_grad():
        layers[0].lora_A["default"].parametrizations.weight[0].c[1] = 0.0

    def moments(layer):
        A = layer.lora_A["default"].parametrizations.weight
        return [optimizer.state[p] for p in (A.original, layer.lora_B["default"].weight, A[0].c)]

    before = [copy.deepcopy(moments(layer)) for layer in layers]
    adapter.move_ranks(torch.Generator().manual_seed(0))
    assert adapter.ranks()[names[0]] == 3
    (taker,) = [i for i, name in enumerate(names) if adapter.ranks()[name] == 5]
    for i, kept in ((0, [0, 2, 3]), (taker, [0, 1, 2, 3])):
        for dim, old, new in zip((0, 1, 0), before[i], moments(layers[i]), strict=True):
            assert float(old["step"]) == float(new["step"]) == 3
            for key in ("exp_avg", "exp_avg_sq"):
                survivors = old[key].index_select(dim, torch.tensor(kept))
                assert torch.equal(new[key].narrow(dim, 0, len(kept)), survivors)
                if i == taker:  # no momentum, and the mean second moment of the survivors
                    fresh = new[key].select(dim, 4)
                    expected = survivors.mean(dim) if key == "exp_avg_sq" else torch.zeros_like(fresh)
                    assert torch.allclose(fresh, expected)
    A, B = layers[taker].lora_A["default"].weight, layers[taker].lora_B["default"].weight
    assert float(B[:, 4].detach().abs().max()) == 0
    assert 0.5 < float(A[4].detach().abs().max()) * layers[taker].in_features ** 0.5 <= 1  # uniform in +-1/sqrt(in)


class Toy(nn.Module):
    """Computes y = W_0 x_0 + W_1 x_1: two layers with different inputs."""

    def __init__(self, width):
        super().__init__()
        self.config = SimpleNamespace(model_type="toy", tie_word_embeddings=False, to_dict=dict)
        layers = [nn.ModuleDict({"proj": nn.Linear(width, width, bias=False)}) for _ in range(2)]
        self.body = nn.ModuleDict({"layers": nn.ModuleList(layers)})

    def projections(self):
        return [layer["proj"] for layer in self.body["layers"]]

    def prepare_inputs_for_generation(self): ...

    def forward(self, x):
        return sum(projection(own) for projection, own in zip(self.projections(), x, strict=True))


@pytest.mark.parametrize("needy", [0, 1])
def test_budget_during_training_moves_to_the_layer_that_needs_it(needy):
    """The target differs from the start by a matrix of rank 6 on one of two layers; both start with rank 4."""
    torch.manual_seed(0)
    width, steps = 24, 400
    toy = Toy(width)
    delta = torch.randn(width, 6) @ torch.randn(6, width) / width
    target = [p.weight.detach() + (delta if i == needy else 0) for i, p in enumerate(toy.projections())]
    policy = Policy(
        toy, None, torch.device("cpu"), (), 0, 0, False, vocabulary=0, stop_text=None, before_end="", turn_end=()
    )
    adapter = l1ra(policy, "adapter.gate_lr=0.02", "adapter.l1=0.3", "adapter.target_modules=[proj]", rank=4)
    optimizer = adapter.optimizer(5e-3, 0.0)
    totals = []
    for step in range(1, steps + 1):
        x = torch.randn(2, 64, width)
        optimizer.zero_grad()
        loss = (toy(x) - x[0] @ target[0].T - x[1] @ target[1].T + 0.1 * torch.randn(64, width)).square().mean()
        loss.backward()
        optimizer.step()
        adapter.after_step(step, steps)
        totals.append(sum(adapter.ranks().values()))
    ranks = list(adapter.ranks().values())
    assert max(totals) <= 8
    assert ranks[needy] >= 6
    assert ranks[1 - needy] <= 2
    learned = list(adapter.layers.values())[needy].get_delta_weight("default").detach()
    assert float((learned - delta).norm() / delta.norm()) < 0.2


# --- saving, loading, exporting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [(), ("adapter.init=normal", "adapter.budget_of=parameters", "adapter.threshold_adds_step=true")]
)
def test_state_saved_after_rank_updates_resumes_bit_for_bit(tiny, settings, tmp_path):
    from safetensors.torch import load_file, save_file

    def step(policy, adapter, optimizer, number):
        train_step(policy, optimizer)
        adapter.after_step(number, 12)

    settings = ("adapter.gate_lr=0.3", "adapter.l1=0.8", "adapter.update_every=0.25", *settings)
    policy = copy.deepcopy(tiny)
    adapter = l1ra(policy, *settings)
    optimizer = adapter.optimizer(1e-2, 0.01)
    for number in range(1, 8):
        step(policy, adapter, optimizer, number)
    assert len(set(adapter.ranks().values())) > 1
    save_file(adapter.state(), tmp_path / "adapter.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    at_save = adapter.ranks()
    for number in range(8, 13):
        step(policy, adapter, optimizer, number)

    again = l1ra(tiny, *settings)
    again.load_state(load_file(tmp_path / "adapter.safetensors"))
    assert again.ranks() == at_save
    resumed = again.optimizer(1e-2, 0.01)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for number in range(8, 13):
        step(tiny, again, resumed, number)
    assert again.ranks() == adapter.ranks() != at_save
    expected = adapter.state()
    assert again.state().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in again.state().items())


def test_load_state_of_other_modules_is_refused(tiny):
    state = l1ra(copy.deepcopy(tiny), "adapter.target_modules=[q_proj]").state()
    with pytest.raises(ValueError, match="belongs to other modules"):
        l1ra(tiny).load_state(state)


def test_export_is_an_ordinary_lora_that_peft_alone_loads_and_merges(tiny, tmp_path):
    adapter = l1ra(tiny)
    adapter.optimizer(1e-2, 0.0)
    generator = torch.Generator().manual_seed(5)
    set_gates(adapter, generator)
    adapter.move_ranks(generator)
    set_gates(adapter, generator, closed=0.1)
    assert len(set(adapter.ranks().values())) > 2
    adapter.export(tmp_path / "adapter")
    torch.save({"ids": IDS, "logits": logits(tiny)}, tmp_path / "expected.pt")
    code = f"""
import sys, torch, warnings
warnings.filterwarnings("error", category=UserWarning, module="peft")
from peft import PeftModel
from transformers import AutoModelForCausalLM
expected = torch.load({str(tmp_path / "expected.pt")!r})
model = AutoModelForCausalLM.from_pretrained({str(EMBEDDED["tiny"])!r})
with torch.no_grad():
    plain = model(expected["ids"]).logits
    model = PeftModel.from_pretrained(model, {str(tmp_path / "adapter")!r})
    loaded = model(expected["ids"]).logits
    merged = model.merge_and_unload()(expected["ids"]).logits
assert "rlsparse" not in sys.modules
for got in (loaded, merged, plain):
    print(float((got - expected["logits"]).abs().max()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded, merged, plain = map(float, done.stdout.split())
    assert loaded < 1e-5
    assert merged < 1e-4  # rounding of W + dW
    assert plain > 0.1  # and the adapter has an effect
    ranks = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
    assert ranks == {f"^{name}": rank for name, rank in adapter.ranks().items()}


# --- the fast paths ----------------------------------------------------------------------------------------------


def with_moved_ranks(policy, *overrides):
    adapter = l1ra(policy, *overrides)
    adapter.optimizer(1e-2, 0.0)
    generator = torch.Generator().manual_seed(5)
    set_gates(adapter, generator)
    adapter.move_ranks(generator)
    set_gates(adapter, generator, closed=0.1)
    return adapter


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_packed_path_after_ranks_moved_equals_the_plain_path(tiny, name):
    policy = family(tiny, name)
    adapter = with_moved_ranks(policy)
    assert can_pack(policy) is None
    rollout = ragged()
    order, needed = torch.arange(12), rollout.mask
    results = []
    for path in (token_log_probs, packed_log_probs):
        policy.model.zero_grad()
        log_probs = path(policy, rollout, order, needed, 0.8)
        (log_probs * torch.linspace(-1, 1, log_probs.numel()).view_as(log_probs)).sum().backward()
        results.append((log_probs.detach(), gradient(adapter)))
    (plain, plain_gradient), (packed, packed_gradient) = results
    assert float((plain - packed).abs().max()) < 1e-5
    assert_same(packed_gradient, plain_gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_are_the_base_weights_plus_the_gated_product(tiny, dtype):
    tiny.model.to(dtype)
    adapter = with_moved_ranks(tiny)
    outside = logits(tiny)
    before = {name: layer.base_layer.weight.detach().clone() for name, layer in adapter.layers.items()}
    changed = 0
    with tiny.merged():
        for name, layer in adapter.layers.items():
            A, B, c = (adapter.state()[f"{name}.{part}"] for part in "ABc")
            expected = before[name].float() + 2.0 * B @ torch.diag(c) @ A  # adapter.scale is 2
            merged = layer.base_layer.weight
            assert merged.dtype == dtype
            changed += not torch.equal(merged, before[name])
            assert torch.allclose(merged.float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
        assert changed > 15  # of 21: some adapters have all gates closed
        if dtype == torch.float32:
            assert float((logits(tiny) - outside).abs().max()) < 1e-4
    assert torch.equal(logits(tiny), outside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_engines_sample_from_the_gated_adapter(tiny, dtype):
    tiny.model.to(dtype)
    prompts = [encode_prompt(tiny, Problem(q, "", ""), q) for q in ("57*4=", "12*3=")]

    def greedy(name):
        request = Request(prompts, 2, greedy=True)
        return engine(name, "rollout.max_new_tokens=12").generate(tiny, request, stream(0, "r"))

    without = greedy("plain")
    with_moved_ranks(tiny)
    fast, plain = greedy("fast"), greedy("plain")
    assert not torch.equal(without.log_probs[:, 0], plain.log_probs[:, 0])
    if dtype == torch.float32:
        assert torch.equal(fast.completion_ids, plain.completion_ids)
        assert torch.allclose(fast.log_probs, plain.log_probs, atol=1e-5)
    else:  # the first token alone: after it the two may differ
        moved = (without.log_probs[:, 0] - plain.log_probs[:, 0]).abs()
        assert bool(((fast.log_probs[:, 0] - plain.log_probs[:, 0]).abs() < 0.2 * moved).all())


# --- whole runs --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "rgra", "sgrpo", "tspmo", "reinforce", "dr_grpo", "rloo"])
def test_every_algorithm_with_l1ra_runs_and_reports_its_ranks(algorithm, tmp_path):
    config = composed(*SHORT, *FIRES, "train.steps=6", f"algorithm={algorithm}", f"runs_dir={tmp_path}")
    summary = run(config)
    metrics = rows(folder_of(config))
    steps = [row for row in metrics if row["kind"] == "train"]
    assert summary["adapter"]["budget"] == 8 * 21
    assert sum(summary["adapter"]["rank"].values()) == steps[-1]["adapter/rank_total"] <= 8 * 21
    assert {"adapter/gate_min", "adapter/gate_mean"} <= set(steps[0])
    assert steps[0]["adapter/gate_min"] <= 1
    prefix = "adapter/rank/"
    logged = [row for row in metrics if row["kind"] == "ranks"]
    assert logged[0]["step"] == 0
    assert set(logged[0].values()) == {0, "ranks", 8}
    last = {name.removeprefix(prefix): rank for name, rank in logged[-1].items() if name.startswith(prefix)}
    assert last == summary["adapter"]["rank"]
    updates = [row for row in steps if "adapter/pruned" in row]
    assert [row["step"] for row in updates] == [2, 4] == [row["step"] for row in logged[1:]]  # 0.34 x 6 steps
    pruned = sum(row["adapter/pruned"] for row in updates)
    assert summary["adapter"]["pruned"] == pruned > 0
    assert summary["adapter"]["reassigned"] == sum(row["adapter/reassigned"] for row in updates)
    assert f"{pruned} ranks pruned, {summary['adapter']['reassigned']} reassigned (budget 168)" in headline(summary)


def test_run_with_rank_updates_repeats_bit_for_bit(tmp_path):
    one, two = (composed(*SHORT, *FIRES, "train.steps=6", f"runs_dir={tmp_path / name}") for name in "ab")
    run(one)
    run(two)
    assert [without_times(r) for r in rows(folder_of(one))] == [without_times(r) for r in rows(folder_of(two))]
    updates = [row for row in rows(folder_of(one)) if "adapter/pruned" in row]
    assert sum(row["adapter/pruned"] for row in updates) > 0
    assert sum(row["adapter/reassigned"] for row in updates) > 0
    written = [(folder_of(c) / "adapter" / "adapter_model.safetensors").read_bytes() for c in (one, two)]
    assert written[0] == written[1]


def test_run_with_a_budget_in_parameters_never_exceeds_it_and_reports_parameters(tmp_path):
    settings = ("adapter.budget_of=parameters", "train.steps=6")
    config = composed(*SHORT, *FIRES, *settings, f"runs_dir={tmp_path}")
    adapter = run(config)["adapter"]
    steps = [row for row in rows(folder_of(config)) if row["kind"] == "train"]
    counts = [row["adapter/parameters"] for row in steps]
    # 8 components on each of the modules of the 3 layers: in + out + 1 parameters each
    width, narrow, wide = 128, 64, 384
    of_a_layer = 2 * (2 * width + 1) + 2 * (width + narrow + 1) + 3 * (width + wide + 1)  # q and o, k and v, the rest
    assert adapter["budget"] == 8 * 3 * of_a_layer == counts[0]
    assert max(counts) <= adapter["budget"]
    assert adapter["parameters"] == counts[-1] > 0.95 * adapter["budget"]
    assert adapter["reassigned"] > 0
    assert len(set(adapter["rank"].values())) > 2


def test_new_keys_at_their_neutral_values_are_not_in_the_run_id():
    """So the runs from before these keys count as finished."""
    described = {
        "class": "L1ra",
        "scale": 2.0,
        "target_modules": "all-linear",
        "layers": "all",
        "budget": None,
        "l1": 1e-3,
        "gate_lr": 0.02,
        "update_every": 0.1,
        "threshold": 1e-10,
        "reassign": True,
        "exclude_pruned": True,
        "min_rank": 1,
    }
    assert describe(built("adapter=l1ra").adapter, str) == described
    short = {"gate_lr": 0.1, "l1": 0.2}
    assert describe(built("adapter=l1ra_short").adapter, str) == {**described, **short}
    new = {"init": "normal", "threshold_adds_step": True}
    authors = {"l1": 5e-3, "update_every": 0.05, **new}
    assert describe(built("adapter=l1ra_authors").adapter, str) == {**described, **authors}
    by_parameters = built("adapter=l1ra", "adapter.budget_of=parameters").adapter
    assert describe(by_parameters, str) == {**described, "budget_of": "parameters"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter.budget=20"], r"adapter.budget=20: the model gets 21 adapters .* must be at least 21 ranks"),
        (["adapter.budget=50", "adapter.min_rank=3"], r"adapter.budget=50: .* must be at least 63 ranks"),
        # 3 layers x 2,439 parameters of a component on each module
        (
            ["adapter.budget=168", "adapter.budget_of=parameters"],
            r"adapter.budget=168: the model gets 21 adapters .* must be at least 7317 parameters; raise it",
        ),
        (["adapter.budget_of=tokens"], r"adapter.budget_of=tokens: must be one of ranks, parameters"),
        (["adapter.init=kaiming"], r"adapter.init=kaiming: must be one of peft, normal"),
        (
            ["adapter.threshold_adds_step=true", "adapter.l1=50"],
            r"adapter.threshold_adds_step=true: threshold \+ gate_lr x l1 is 1 at the peak; it must be below 1",
        ),
        (["lora_rank=2", "adapter.min_rank=3"], r"adapter.min_rank=3: above the initial rank lora_rank=2; lower it"),
        (["adapter.update_every=1"], r"adapter.update_every=1.0: .* after step 40 of 40, so there would be none"),
        (["train.steps=1"], r"adapter.update_every=0.1: .* after step 1 of 1, so there would be none"),
    ],
)
def test_preflight_of_settings_that_can_never_work_refuses_them(overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        preflight([composed(f"runs_dir={tmp_path}", "adapter=l1ra", *overrides)])


def test_budget_of_a_config_is_spread_evenly(tiny):
    adapter = l1ra(tiny, "adapter.budget=50", rank=8)
    assert adapter.budget == 50
    assert list(adapter.ranks().values()) == [3] * 8 + [2] * 13
    assert {tuple(c.shape) for c in gates(adapter).values()} == {(3,), (2,)}


def test_traits_of_adapters_say_whether_ranks_move_and_whether_all_weights_are_trained():
    options = {name: built(f"adapter={name}").adapter for name in ("lora", "l1ra", "l1ra_short", "l1ra_authors")}
    options["none"] = NoAdapter()
    assert [name for name, adapter in options.items() if adapter.moves_ranks] == ["l1ra", "l1ra_short", "l1ra_authors"]
    assert [name for name, adapter in options.items() if adapter.trains_all_weights] == ["none"]
