"""The policy that a new site starts with: careful, and every key explained."""

from typing import Final

_TEMPLATE: Final = """\
# What this site allows, whatever a plan asks for. It is signed: an edit counts once you run
#     fedward site policy --install policy.toml
# and until then every plan is refused.
version = 1

# With fewer patients than this the site stays out; the coordinator is not told why.
minimum_patients = 20

# The fewest sites whose sum this site joins; 3 is the least that hides one site from another.
minimum_cohort = 3

# A plan must allow for at least so many sites that cheat or pool what they know.
colluding_at_least = 1

# The largest delta a plan may have; far below 1 / patients.
maximum_delta = 1e-5

# "pooled": one shared noise, better models; "local": each site makes all its noise itself and trusts nobody.
modes = ["pooled", "local"]

# Frozen public networks in front of what is trained; "none" for tables.
backbones = ["none", "squeezenet1_1"]

# What may be learnt.
tasks = ["tabular-classification", "image-classification"]

# What happens when a site goes missing; "retry": the round is tried again without it.
dropout_modes = ["retry"]

# When plans may compute, by this machine's clock, such as ["20:00-06:00"]; empty: always.
hours = []

# Approve plans without anybody reading them. If ever, then with a limit on what one plan may cost by itself.
auto_approve = false
# auto_approve_up_to_epsilon = 0.5
# auto_approve_up_to_epsilon_alone = 1.0

# Privacy budgets. Without one a population spends nothing, so a new site gives nothing away. A budget is fixed in the
# ledger when its data is registered and lasts for good: what is spent never comes back. Lowering it later works at
# once; raising it does not.
#   epsilon        the most privacy loss in all, while at most the plan's number of sites cheats; 1 is strong, 8 is weak
#   epsilon_alone  the same if all other sites cheat together; at least epsilon, often about twice
#   delta          the chance that the bounds fail; plans must be made for the same
#   unit           "patient", or "record", which protects less
#
# [budget.POPULATION]
# epsilon = 3.0
# epsilon_alone = 6.0
# delta = 1e-5
# unit = "patient"
"""


def policy_template() -> bytes:
    """policy.toml of a new site: the defaults of `SitePolicy`, no budget."""
    return _TEMPLATE.encode()


def budget_lines(population: str) -> str:
    """The lines to add to policy.toml for one population, with careful numbers to think about."""
    return f"[budget.{population}]\nepsilon = 3.0\nepsilon_alone = 6.0\ndelta = 1e-5"
