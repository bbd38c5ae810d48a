"""Recipe section `benchmark`: measurement of accuracy, size and speed of the exported IRs."""

from pydantic import Field

from toolkit.recipe.fields import Count, Position, Section


class PerformanceConfigs(Section):
    """INC's keys for cores and instances; passed to benchmark_app as -nthreads and -nstreams."""

    cores_per_instance: Count | None = Field(None, description="threads per stream; default: all cores")
    num_of_instance: Count = Field(1, description="number of parallel inference streams")


class Performance(Section):
    """Latency and throughput measured with benchmark_app, variants interleaved."""

    warmup: Position = Field(1, description="number of discarded warm-up rounds")
    iteration: Count = Field(3, description="number of measured rounds over all variants")
    seconds: Count = Field(3, description="duration of one benchmark_app run in seconds")
    batch_sizes: tuple[Count, ...] = Field((1, 8), min_length=1, description="batch sizes to measure")
    sequence_length: Count = Field(128, description="tokens per example, after padding")
    configs: PerformanceConfigs = PerformanceConfigs()


class Evaluation(Section):
    """INC's nesting; accuracy is always measured on the complete dev split."""

    performance: Performance = Performance()


class Benchmark(Section):
    """Accuracy, size and speed of each exported IR."""

    evaluation: Evaluation = Evaluation()
