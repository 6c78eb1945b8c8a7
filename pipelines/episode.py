"""One episode of a study: infer the spec, plan a strategy, compress, evaluate, update the frontier.

``zenml pipeline run pipelines.episode.compression_episode -c configs/studies/demo.yaml`` runs exactly one more
episode of the study that the file names; so do ``acf run`` (in a loop) and a schedule.
"""

from zenml import pipeline
from zenml.enums import ExecutionMode

from agentic_compression.records import StudyConfig
from agentic_compression.study import with_name
from agentic_compression.study.promotion import model_of
from steps import compress, evaluate, infer_spec, llm_plan, update_frontier, validate_data
from steps.control_plane import belongs_to


# ZenML's step cache hashes the step's code alone; this project keys work by content instead. Failing fast hands
# the step's own exception to the caller.
@pipeline(name="compression_episode", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def compression_episode(study: StudyConfig) -> None:
    """Advance ``study`` by one episode.

    Args:
        study: the study's configuration, as a user writes it.
    """
    named = with_name(study)
    belongs_to(model_of(named), named.name)
    spec = infer_spec(study=study)
    dataset, _ = validate_data(study=study)
    plan = llm_plan(study=study, spec=spec, dataset=dataset)
    compressed = compress(study=study, spec=spec, dataset=dataset, plan=plan)
    evaluated = evaluate(study=study, dataset=dataset, plan=plan, compressed=compressed)
    update_frontier(study=study, plan=plan, compressed=compressed, evaluated=evaluated)
