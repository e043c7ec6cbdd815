# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, epsilon 8 per patient, without a phrasebook: from the labels' Spanish names.

python scripts/train.py --config configs/padchest_patient_labels_eps8.py

Result: test weighted F1 0.944, one run (docs/results.md).
"""

from jaxdp.config import inherit

# Each as it is said, and as PadChest's stemmed reports write it.
NAMES = (
    "normal: normal, normal",
    "copd_signs: signos epoc, sign epoc",
    "cardiomegaly: cardiomegalia, cardiomegali",
    "aortic_elongation: elongacion aortica, elong aortic",
    "pleural_effusion: derrame pleural, derram pleural",
    "atelectasis: atelectasia, atelectasi",
    "interstitial_pattern: patron intersticial, patron intersticial",
    "central_venous_catheter: cateter venoso central, catet venos central",
    "scoliosis: escoliosis, escoliosis",
    "nsg_tube: sonda nasogastrica, sond nasogastr",
    "pneumonia: neumonia, neumoni",
    "alveolar_pattern: patron alveolar, patron alveolar",
    "infiltrates: infiltrado, infiltr",
    "costophrenic_angle_blunting: pinzamiento del seno costofrenico, pinz sen costofren",
    "pleural_thickening: engrosamiento pleural, engros pleural",
    "air_trapping: atrapamiento aereo, atrap aere",
    "nodule: nodulo, nodul",
    "pacemaker: marcapasos, marcapas",
)


def get_config():
    config = inherit(__file__, "padchest_patient_eps8")
    config.warm_start.phrasebook = "labels"
    config.warm_start.lexicon = False  # see openi_labels_eps8
    config.warm_start.language = "es"
    config.warm_start.synonyms = NAMES
    config.run.name = "padchest_patient_labels_eps8"
    return config
