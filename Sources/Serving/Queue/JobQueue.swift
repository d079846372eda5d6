// The one bounded queue in front of the one device: HTTP handlers wait here for their picture, the engine comes here
// for work. Holds continuations and times; the rules are in `JobQueue+StateMachine.swift`.

public import Foundation
public import StableDiffusion

/// Why a request got no picture.
public enum JobFailure: Error, Equatable, Sendable {
    /// Every place in the queue is taken; one is likely free after so many seconds.
    case queueFull(waiting: Int, retryAfterSeconds: Int)
    /// The model is still being loaded.
    case loading
    /// The service is going down.
    case shuttingDown
    /// The job was cancelled.
    case cancelled
    /// The model it names could not be loaded.
    case model(reason: String)
    /// The model or its device could not do it.
    case generation(GenerationError)
    /// The picture is made and could not be kept.
    case storage(ImageStoreError)
    /// A mistake in this program; the log has the details.
    case `internal`(String)
}

/// A picture that is made and kept.
public struct FinishedImage: Equatable, Sendable {
    /// Its id in the image store.
    public let id: UUID
    /// Seconds it took to make and keep it, without the time in the queue.
    public let seconds: Double
    /// The end of the prompt that the text encoder could not take in, if any was cut.
    public let truncatedPrompt: String?
}

/// A queue of generations, in the order of their arrival.
public actor JobQueue {
    /// A job as the engine sees it.
    struct Job: Sendable {
        let id: JobID
        /// The first picture.
        let request: GenerationRequest
        /// Pictures, each with the seed after the last one's.
        let count: Int
    }

    /// What `/metrics` and `/health/ready` tell about the queue.
    struct Status: Equatable, Sendable {
        let phase: StateMachine.Phase
        let waiting: Int
        let isRunning: Bool
        /// What is loaded; nil while it is being loaded.
        let model: ModelDescription?
    }

    private struct Ticket {
        let request: GenerationRequest
        let count: Int
        let admitted: ContinuousClock.Instant
        let continuation: CheckedContinuation<[FinishedImage], any Error>
    }

    private var state: StateMachine
    private var tickets: [JobID: Ticket] = [:]
    /// The engine, when it waits for a job.
    private var idleEngine: CheckedContinuation<Void, Never>?
    /// Seconds that the last jobs took, for estimates.
    private var recentSeconds: [Double] = []
    private let metrics: Metrics
    private var model: ModelDescription?

    /// An empty queue, closed until the model is loaded.
    ///
    /// - Parameter capacity: jobs that may wait behind the running one.
    init(capacity: Int, metrics: Metrics) {
        state = StateMachine(capacity: capacity)
        self.metrics = metrics
    }

    /// The state for health checks and metrics.
    var status: Status {
        Status(phase: state.phase, waiting: state.waiting.count, isRunning: state.running != nil, model: model)
    }

    // MARK: For those who want a picture

    /// Queues a request and waits for its pictures.
    ///
    /// A client that goes away in the meantime changes nothing: the pictures are finished and kept.
    ///
    /// - Parameter count: Pictures, each with the seed after the last one's.
    /// - Throws: `JobFailure`; pictures of the same request that were made by then are kept.
    func submit(_ request: GenerationRequest, count: Int = 1) async throws -> [FinishedImage] {
        let refusal: JobFailure
        switch state.admit() {
        case .full(let waiting): refusal = .queueFull(waiting: waiting, retryAfterSeconds: secondsUntilPlace)
        case .loading: refusal = .loading
        case .draining: refusal = .shuttingDown
        case .admitted(let id, _):
            return try await withCheckedThrowingContinuation { continuation in
                tickets[id] = Ticket(request: request, count: count, admitted: .now, continuation: continuation)
                wakeEngine()
            }
        }
        metrics.countGeneration(outcome: .refused)
        throw refusal
    }

    /// Gives up a job: at once when it waits, after its present step when it runs.
    ///
    /// - Returns: whether there was such a job.
    @discardableResult
    func cancel(_ id: JobID) -> Bool {
        switch state.cancel(id) {
        case .removed:
            resolve(id, .failure(.cancelled))
            return true
        case .stopping: return true
        case .unknown: return false
        }
    }

    // MARK: For the engine

    /// Opens the queue: the model is loaded and has drawn once.
    ///
    /// - Returns: false when the service is already going down.
    func startServing(_ model: ModelDescription) -> Bool {
        self.model = model
        return state.startServing()
    }

    /// The next job; waits for one.
    ///
    /// Nil when the service goes down.
    func next() async -> Job? {
        while true {
            switch state.next() {
            case .stop: return nil
            case .wait: await withCheckedContinuation { idleEngine = $0 }
            case .run(let id):
                guard let ticket = tickets[id] else { preconditionFailure("job \(id) was admitted without a ticket") }
                metrics.observeWait(seconds: ticket.admitted.secondsUntilNow)
                return Job(id: id, request: ticket.request, count: ticket.count)
            }
        }
    }

    /// Whether the running job should be stopped.
    func isCancelled(_ id: JobID) -> Bool {
        state.isCancelled(id)
    }

    /// Ends the running job and answers who waits for it.
    func finish(_ job: Job, _ result: Result<[FinishedImage], JobFailure>) {
        state.finish(job.id)
        if case .success(let images) = result {
            recentSeconds.append(images.reduce(0) { $0 + $1.seconds })
            if recentSeconds.count > 16 { recentSeconds.removeFirst() }
        }
        resolve(job.id, result)
    }

    // MARK: For the service

    /// Refuses what waits and what comes; the running job is finished.
    func drain() -> StateMachine.Drain {
        let drain = state.drain()
        for id in drain.refused { resolve(id, .failure(.shuttingDown)) }
        wakeEngine()
        return drain
    }

    private func resolve(_ id: JobID, _ result: Result<[FinishedImage], JobFailure>) {
        guard let ticket = tickets.removeValue(forKey: id) else { return }
        metrics.countGeneration(outcome: result.outcome)
        ticket.continuation.resume(with: result.mapError { $0 as any Error })
    }

    private func wakeEngine() {
        idleEngine?.resume()
        idleEngine = nil
    }

    /// A place is free when the running job is done: about one job from now.
    private var secondsUntilPlace: Int {
        guard !recentSeconds.isEmpty else { return 10 }
        let mean = recentSeconds.reduce(0, +) / Double(recentSeconds.count)
        return min(3600, max(1, Int(mean.rounded(.up))))
    }
}

extension Result where Success == [FinishedImage], Failure == JobFailure {
    /// The outcome as `/metrics` counts it.
    fileprivate var outcome: Metrics.Outcome {
        switch self {
        case .success: .done
        case .failure(.generation(.invalid)): .invalid
        case .failure(.cancelled): .cancelled
        case .failure(.shuttingDown), .failure(.loading), .failure(.queueFull): .refused
        case .failure(.generation), .failure(.model), .failure(.storage), .failure(.internal): .failed
        }
    }
}

extension ContinuousClock.Instant {
    /// Seconds since this instant.
    var secondsUntilNow: Double {
        let duration = ContinuousClock.now - self
        return Double(duration.components.seconds) + Double(duration.components.attoseconds) * 1e-18
    }
}
