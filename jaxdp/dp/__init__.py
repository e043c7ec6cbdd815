# SPDX-License-Identifier: Apache-2.0
"""The audited base: what is run, how it is clipped and noised, what it costs, what is claimed.

Read in this order: `mechanism` (what is run), `clipping` and `noise` (the release of one step),
`sampling` (who takes part), `accounting` (what it costs), `groups` (what it costs a patient with
several reports), `joint` (what the members of a sweep cost together), `statement` (what is
claimed), `ledger` (what was run before). Imports nothing else of jaxdp. Adjacency throughout: two
data sets are neighbours if one is the other plus one privacy unit (add or remove one).
"""

from .accounting import (
    CalibrationError,
    calibrate_noise,
    epsilon_pld,
    epsilon_rdp,
    require_target,
)
from .clipping import (
    ClipDiagnostics,
    ColumnProducts,
    OuterProducts,
    clip_and_sum,
    clipped_gradient_sum,
)
from .groups import group_epsilon
from .joint import joint_mechanisms, joint_noise_multiplier
from .ledger import Ledger, LedgerError
from .mechanism import SubsampledGaussian
from .noise import add_noise_and_average, dp_aggregate
from .sampling import PoissonSampler
from .secure_noise import SecureNoise
from .statement import (
    delta_warning,
    event_from_json,
    json_number,
    privacy_statement,
    recomputed_epsilon,
    statement_markdown,
)
