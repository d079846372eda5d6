// Counts what the daemon does and writes it in Prometheus' text format (version 0.0.4). Every label has a small, fixed
// set of values, so that no client can make the daemon remember more.

internal import StableDiffusion
internal import Synchronization

/// The daemon's counters.
final class Metrics: Sendable {
    /// How a request for a picture ended.
    enum Outcome: String, CaseIterable, Sendable {
        /// The picture is made and kept.
        case done
        /// The model refused a parameter.
        case invalid
        /// The device, the disk or the program failed.
        case failed
        /// The job was cancelled.
        case cancelled
        /// No place in the queue, the model not loaded yet, or the service going down.
        case refused
    }

    /// Values read when the metrics are asked for.
    struct Gauges: Sendable {
        let waiting: Int
        let capacity: Int
        let isRunning: Bool
        let isReady: Bool
        let models: [ModelCatalogue.Entry]
    }

    /// A cumulative histogram.
    private struct Histogram {
        static let bounds: [Double] = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000]
        var counts = [Int](repeating: 0, count: bounds.count)
        var count = 0
        var sum = 0.0

        mutating func observe(_ value: Double) {
            for index in counts.indices where value <= Self.bounds[index] { counts[index] += 1 }
            count += 1
            sum += value
        }
    }

    private struct Request: Hashable {
        let method: String
        let route: String
        let status: Int
    }

    private struct State {
        var requests: [Request: Int] = [:]
        var outcomes: [Outcome: Int] = Dictionary(uniqueKeysWithValues: Outcome.allCases.map { ($0, 0) })
        var steps = 0
        var wait = Histogram()
        var generation = Histogram()
    }

    private let state = Mutex(State())

    /// Counts an answered HTTP request; `route` is the template, never what the client sent.
    func countRequest(method: String, route: String, status: Int) {
        let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]
        let request = Request(method: known.contains(method) ? method : "other", route: route, status: status)
        state.withLock { $0.requests[request, default: 0] += 1 }
    }

    /// Counts the end of a request for a picture.
    func countGeneration(outcome: Outcome) {
        state.withLock { $0.outcomes[outcome, default: 0] += 1 }
    }

    /// Counts a denoising step.
    func countStep() {
        state.withLock { $0.steps += 1 }
    }

    /// Notes how long a job waited before it ran.
    func observeWait(seconds: Double) {
        state.withLock { $0.wait.observe(seconds) }
    }

    /// Notes how long a picture took, saving included.
    func observeGeneration(seconds: Double) {
        state.withLock { $0.generation.observe(seconds) }
    }

    /// Everything as Prometheus reads it.
    func text(_ gauges: Gauges) -> String {
        let state = state.withLock { $0 }
        var page = PrometheusPage()

        page.begin("diffused_http_requests_total", "counter", "HTTP requests answered, by route and status.")
        let requests = state.requests.sorted {
            ($0.key.route, $0.key.method, $0.key.status) < ($1.key.route, $1.key.method, $1.key.status)
        }
        for (request, count) in requests {
            page.sample(
                [("method", request.method), ("route", request.route), ("status", String(request.status))],
                String(count)
            )
        }
        page.begin("diffused_generations_total", "counter", "Pictures asked for, by how it ended.")
        for outcome in Outcome.allCases {
            page.sample([("outcome", outcome.rawValue)], String(state.outcomes[outcome, default: 0]))
        }
        page.begin("diffused_steps_total", "counter", "Denoising steps done.")
        page.sample([], String(state.steps))
        page.histogram("diffused_wait_seconds", "Time a job waited before it ran.", state.wait)
        page.histogram("diffused_generation_seconds", "Time a picture took, saving included.", state.generation)
        page.begin("diffused_queue_depth", "gauge", "Jobs that wait.")
        page.sample([], String(gauges.waiting))
        page.begin("diffused_queue_capacity", "gauge", "Jobs that may wait.")
        page.sample([], String(gauges.capacity))
        page.begin("diffused_generation_running", "gauge", "1 while a picture is being made.")
        page.sample([], gauges.isRunning ? "1" : "0")
        page.begin("diffused_ready", "gauge", "1 when pictures can be asked for.")
        page.sample([], gauges.isReady ? "1" : "0")
        page.begin("diffused_model_info", "gauge", "What is loaded, in the labels; always 1.")
        for model in gauges.models.compactMap(\.loaded) {
            page.sample(
                [
                    ("model", model.name), ("device", model.deviceName), ("precision", model.precision.rawValue),
                    ("version", softwareVersion),
                ],
                "1"
            )
        }
        page.begin("diffused_model_loads_total", "counter", "How often a model was loaded.")
        for model in gauges.models { page.sample([("model", model.name)], String(model.loadCount)) }
        return page.text
    }

    /// The text under construction.
    private struct PrometheusPage {
        private(set) var text = ""
        private var name = ""

        mutating func begin(_ name: String, _ type: String, _ help: String) {
            self.name = name
            text += "# HELP \(name) \(help)\n# TYPE \(name) \(type)\n"
        }

        mutating func sample(suffix: String = "", _ labels: [(String, String)], _ value: String) {
            let list = labels.map { "\($0.0)=\"\(Self.escaped($0.1))\"" }.joined(separator: ",")
            text += "\(name)\(suffix)\(list.isEmpty ? "" : "{\(list)}") \(value)\n"
        }

        mutating func histogram(_ name: String, _ help: String, _ histogram: Histogram) {
            begin(name, "histogram", help)
            for (bound, count) in zip(Histogram.bounds, histogram.counts) {
                sample(suffix: "_bucket", [("le", shortNumber(bound))], String(count))
            }
            sample(suffix: "_bucket", [("le", "+Inf")], String(histogram.count))
            sample(suffix: "_sum", [], String(histogram.sum))
            sample(suffix: "_count", [], String(histogram.count))
        }

        private static func escaped(_ value: String) -> String {
            var result = ""
            for character in value {
                switch character {
                case "\\": result += "\\\\"
                case "\"": result += "\\\""
                case _ where character.isNewline: result += "\\n"
                default: result.append(character)
                }
            }
            return result
        }
    }
}
