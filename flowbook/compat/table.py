"""Metaflow's public names, and what flowbook puts in their place.

MODULES: module → name → ``flowbook.module:attribute``. REFUSED: a name, or ``module.name``, → why it is not there and what to use.
Only names are here, so the table is read without importing anything. docs/metaflow.md says what is equal and what differs.
"""

from __future__ import annotations

from collections.abc import Iterable

_DECORATORS = "flowbook.spec.decorators"
_PARAMETERS = "flowbook.spec.parameters"
_CLIENT = "flowbook.client"
_CARDS = "flowbook.cards"


def _same(module: str, names: str) -> dict[str, str]:
    return {name: f"{module}:{name}" for name in names.split()}


_CLIENT_NAMES = _same(
    _CLIENT,
    "Metaflow Flow Run Step Task DataArtifact namespace get_namespace default_namespace metadata get_metadata default_metadata",
)
_STEP_DECORATORS = _same(
    _DECORATORS, "step resources retry timeout catch environment secrets kubernetes pypi conda parallel card checkpoint"
)
_FLOW_DECORATORS = _same(_DECORATORS, "project exit_hook pypi_base conda_base schedule trigger trigger_on_finish")
_OWN_DECORATORS = {
    "user_step_decorator": "flowbook.compat.own:user_step_decorator",
    "UserStepDecorator": "flowbook.compat.own:UserStepDecorator",
    "USER_SKIP_STEP": "flowbook.compat.own:USER_SKIP_STEP",
    "StepMutator": "flowbook.compat.own:StepMutator",
    "FlowMutator": "flowbook.compat.own:FlowMutator",
}
_PARAMETER_NAMES = {
    **_same(_PARAMETERS, "Parameter JSONType"),
    "JSONTypeClass": f"{_PARAMETERS}:JSONType",
}
_CONFIG_NAMES = _same(_PARAMETERS, "Config ConfigValue config_expr")
_COMPONENTS = _same(
    _CARDS, "Artifact Error EventsTimeline Image JSONViewer Markdown ProgressBar PythonCode Table ValueBox VegaChart YAMLViewer"
) | {"MetaflowCardComponent": f"{_CARDS}:Component"}
_CARD_TYPES = _same(_CARDS, "MetaflowCard DefaultCard BlankCard")
_MULTICORE = _same("flowbook.compat.extras", "parallel_map parallel_imap_unordered")
_EXCEPTIONS = {
    "MetaflowException": "flowbook.errors:FlowbookError",
    "MetaflowExceptionWrapper": "flowbook.store.results:TaskError",
    "MetaflowNotFound": f"{_CLIENT}:NotFound",
    "MetaflowNamespaceMismatch": f"{_CLIENT}:NamespaceMismatch",
    "MetaflowInvalidPathspec": f"{_CLIENT}:MetaflowInvalidPathspec",
    "MetaflowTaggingError": "flowbook.errors:DefinitionError",
    "MetaflowDataMissing": "flowbook.errors:ArtifactError",
    "MetaflowInternalError": "flowbook.errors:FlowbookError",
    "CommandException": "flowbook.errors:DefinitionError",
    "InvalidDecoratorAttribute": "flowbook.errors:DefinitionError",
    "ParameterFieldFailed": "flowbook.errors:DefinitionError",
    "ParameterFieldTypeMismatch": "flowbook.errors:DefinitionError",
    "MissingInMergeArtifactsException": "flowbook.spec.flowspec:MergeError",
    "UnhandledInMergeArtifactsException": "flowbook.spec.flowspec:MergeError",
}

MODULES: dict[str, dict[str, str]] = {
    "metaflow": {
        "FlowSpec": "flowbook.spec.flowspec:FlowSpec",
        "current": "flowbook.compat.now:current",
        "Runner": "flowbook.runner:Runner",
        "profile": "flowbook.compat.extras:profile",
        "IncludeFile": f"{_PARAMETERS}:IncludeFile",
        "save_checkpoint": "flowbook.worker.checkpoint:save_checkpoint",
        "load_checkpoint": "flowbook.worker.checkpoint:load_checkpoint",
        "namespaced_event_name": "flowbook.compat.extras:namespaced_event_name",
        **_STEP_DECORATORS,
        **_FLOW_DECORATORS,
        **_OWN_DECORATORS,
        **_PARAMETER_NAMES,
        **_CONFIG_NAMES,
        **_CLIENT_NAMES,
        **_MULTICORE,
    },
    "metaflow.cards": {**_COMPONENTS, **_CARD_TYPES, "get_cards": "flowbook.compat.cards:get_cards"},
    "metaflow.client": _CLIENT_NAMES,
    "metaflow.client.core": {**_CLIENT_NAMES, "MetaflowData": f"{_CLIENT}:MetaflowData"},
    "metaflow.decorators": _same(_DECORATORS, "step"),
    "metaflow.events": {},
    "metaflow.exception": _EXCEPTIONS,
    "metaflow.flowspec": {
        "FlowSpec": "flowbook.spec.flowspec:FlowSpec",
        "InvalidNextException": "flowbook.spec.flowspec:NextError",
    },
    "metaflow.includefile": {"IncludeFile": f"{_PARAMETERS}:IncludeFile"},
    "metaflow.integrations": {},
    "metaflow.metaflow_current": {"current": "flowbook.compat.now:current"},
    "metaflow.metaflow_profile": {"profile": "flowbook.compat.extras:profile"},
    "metaflow.metaflow_version": {"get_version": "flowbook.compat.extras:get_version"},
    "metaflow.multicore_utils": _MULTICORE,
    "metaflow.parameters": {**_PARAMETER_NAMES, "ParameterContext": f"{_PARAMETERS}:ParameterContext"},
    "metaflow.plugins": {},
    "metaflow.plugins.cards": {},
    "metaflow.plugins.cards.card_client": {"get_cards": "flowbook.compat.cards:get_cards"},
    "metaflow.plugins.cards.card_modules": {},
    "metaflow.plugins.cards.card_modules.basic": _CARD_TYPES,
    "metaflow.plugins.cards.card_modules.card": {
        "MetaflowCard": f"{_CARDS}:MetaflowCard",
        "MetaflowCardComponent": f"{_CARDS}:Component",
    },
    "metaflow.plugins.cards.card_modules.components": _COMPONENTS,
    "metaflow.plugins.cards.exception": {"CardNotPresentException": f"{_CLIENT}:NotFound"},
    "metaflow.runner": {},
    "metaflow.runner.metaflow_runner": {"Runner": "flowbook.runner:Runner"},
    "metaflow.user_configs": {},
    "metaflow.user_configs.config_parameters": _CONFIG_NAMES,
    "metaflow.user_decorators": {},
    "metaflow.user_decorators.mutable_flow": {"MutableFlow": "flowbook.compat.own:MutableFlow"},
    "metaflow.user_decorators.mutable_step": {"MutableStep": "flowbook.compat.own:MutableStep"},
    "metaflow.user_decorators.user_flow_decorator": {"FlowMutator": _OWN_DECORATORS["FlowMutator"]},
    "metaflow.user_decorators.user_step_decorator": {name: target for name, target in _OWN_DECORATORS.items() if name != "FlowMutator"},
    "metaflow.util": _same("flowbook.compat.extras", "get_username to_bytes to_unicode is_stringish"),
}

_DEPLOY = "Flows are not deployed from Python here; @schedule and @trigger are kept with the flow, and `flowbook show` prints them."
_STORAGE = "Keep values as artifacts (self.data = …), flowbook.File and flowbook.Directory, or use boto3 itself."
_INTERNAL = "It is not part of Metaflow's public interface. The public names are served: `from metaflow import …`."

REFUSED: dict[str, str] = {
    "S3": f"metaflow.S3 needs a store in S3, which is not there yet. {_STORAGE}",
    "batch": "AWS Batch is not among the places where steps run. Leave @batch out; @resources says what a step needs.",
    "Deployer": _DEPLOY,
    "NBDeployer": _DEPLOY,
    "DeployedFlow": _DEPLOY,
    "NBRunner": "In a notebook run the class of a cell with `%flow run NAME`; a file with flowbook.Runner.",
    "huggingface_hub": "It belongs to an extension of Metaflow. Load the model in the step, and keep it as an artifact.",
    "model": "It belongs to an extension of Metaflow. Keep models as artifacts or checkpoints.",
    "load_model": "It belongs to an extension of Metaflow. Keep models as artifacts or checkpoints.",
    "Checkpoint": "It belongs to an extension of Metaflow. Inside a step use current.checkpoint.",
    "airflow_external_task_sensor": "There is no export to Airflow.",
    "airflow_s3_key_sensor": "There is no export to Airflow.",
    "airflow": "There is no export to Airflow.",
    "step_functions": "There is no export to AWS Step Functions.",
    "pytorch_parallel": "Gangs of tasks that run as one are not supported. Use foreach, or start the processes in the step.",
    "torchrun": "Gangs of tasks that run as one are not supported. Start torchrun in the step.",
    "package_sources": "Not needed: what a flow imports goes along, from wherever it is.",
    "inspect_spin": "`spin` is not there. `flowbook test FLOW.py STEP` runs one step alone.",
    "R": "Flows in R are not supported.",
    "conda_environment_yml_parser": "Give parser= a function of your own, which takes the text and returns a dict.",
    "pyproject_toml_parser": "Give parser= a function of your own, which takes the text and returns a dict.",
    "requirements_txt_parser": "Give parser= a function of your own, which takes the text and returns a dict.",
    "yaml_parser": 'Give parser="yaml.safe_load" instead.',
    "cli_args": _INTERNAL,
    "metaflow.events.Trigger": "Runs are not started by events here yet; current.trigger is None.",
    "metaflow.events.MetaflowEvent": "Runs are not started by events here yet; current.trigger is None.",
    "ArgoEvent": "There is no event bus yet, so nothing can be published.",
    "PageComponent": "Cards have no pages here; use a card of type blank and append what it should show.",
    "ErrorCard": "A failed task's cards show its error by themselves.",
    "UnboundedForeachInput": "A foreach takes any finite iterable here.",
}
DECORATORS = frozenset(
    "batch huggingface_hub model airflow_external_task_sensor airflow_s3_key_sensor pytorch_parallel torchrun package_sources".split()
)
_SUBMODULES = {
    "metaflow.datatools": REFUSED["S3"],
    "metaflow.plugins.datatools": REFUSED["S3"],
    "metaflow.plugins.airflow": REFUSED["airflow"],
    "metaflow.plugins.aws": "What Metaflow does with AWS is not taken over. Use boto3 itself.",
    "metaflow.plugins.argo": REFUSED["ArgoEvent"],
    "metaflow.R": REFUSED["R"],
    "metaflow.runner.deployer": _DEPLOY,
    "metaflow.runner.nbrun": REFUSED["NBRunner"],
    "metaflow.runner.nbdeploy": _DEPLOY,
    "metaflow.unbounded_foreach": REFUSED["UnboundedForeachInput"],
    "metaflow.metaflow_config": "Settings are those of flowbook; docs/settings.md lists them.",
}
_INTERNALS = frozenset(
    "_vendor cli cli_args cli_components client clone_util cmd cmd_with_io datastore debug event_logger extension_support graph lint "
    "meta_files metadata_provider metaflow_environment metaflow_git mflog monitor package packaging_sys plugins procpoll pylint_wrapper "
    "runner runtime sidecar system system_context tagging_util task tracing tuple_util user_configs user_decorators vendor version".split()
)


def names_of(module: str) -> list[str]:
    """The names that a module serves, and its submodules."""
    below = [name for name in MODULES if name.rpartition(".")[0] == module]
    return sorted({*MODULES[module], *(name.rpartition(".")[2] for name in below)})


def why_not(module: str) -> str | None:
    """Why a submodule is not there; None for one that Metaflow has not either."""
    known = next((why for name, why in _SUBMODULES.items() if _is_in(module, [name])), None)
    if known is None and (_is_in(module, MODULES.keys() - {"metaflow"}) or module.split(".")[1] in _INTERNALS):
        return _INTERNAL
    return known


def _is_in(module: str, places: Iterable[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)
