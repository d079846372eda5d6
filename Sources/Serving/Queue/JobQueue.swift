// The one bounded queue in front of the one device: HTTP handlers wait here for their pictures or watch them come, the engine comes here
// for work. Holds records, continuations and times; the rules are in `JobQueue+StateMachine.swift`.

internal import Foundation
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
    /// Its idempotency key is that of another request.
    case keyReused
    /// The model it names could not be loaded.
    case model(reason: String)
    /// The model or its device could not do it.
    case generation(GenerationError)
    /// The picture is made and could not be kept.
    case storage(ImageStoreError)
    /// A mistake in this program; the log has the details.
    case `internal`(String)
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

    /// A job, and who waits for what becomes of it.
    private struct Entry {
        var record: JobRecord
        /// The name of its idempotency key, if it has one.
        let key: String?
        let admitted = ContinuousClock.now
        var waiters: [CheckedContinuation<JobRecord, Never>] = []
        var watchers: [Int: AsyncStream<JobRecord>.Continuation] = [:]
    }

    /// What keeps a request that is sent again from being drawn again.
    struct IdempotencyKey: Sendable {
        /// What the client calls the request.
        let name: String
        /// Of all that it sent.
        let digest: [UInt8]
    }

    /// Jobs that are done and still known; the oldest are forgotten first.
    static let historyLength = 1000

    private var state: StateMachine
    private var entries: [JobID: Entry] = [:]
    private var numbers: [UUID: JobID] = [:]
    private var keys: [String: (digest: [UInt8], job: JobID)] = [:]
    /// Jobs that are done, the oldest first.
    private var history: [JobID] = []
    private var lastWatcher = 0
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

    /// Queues a request.
    ///
    /// A client that goes away changes nothing: the pictures are finished and kept.
    ///
    /// - Parameters:
    ///   - count: Pictures, each with the seed after the last one's.
    ///   - key: Of a request that may have come before; it then has the job it had.
    /// - Throws: `JobFailure`.
    func enqueue(_ request: GenerationRequest, count: Int = 1, key: IdempotencyKey? = nil) throws(JobFailure)
        -> JobRecord
    {
        if let key, let known = keys[key.name], let record = snapshot(known.job) {
            guard known.digest == key.digest else { throw .keyReused }
            return record
        }
        let refusal: JobFailure
        switch state.admit() {
        case .full(let waiting): refusal = .queueFull(waiting: waiting, retryAfterSeconds: secondsUntilPlace)
        case .loading: refusal = .loading
        case .draining: refusal = .shuttingDown
        case .admitted(let id, let position):
            var record = JobRecord(id: UUID(), request: request, count: count, created: Date())
            entries[id] = Entry(record: record, key: key?.name)
            numbers[record.id] = id
            if let key { keys[key.name] = (key.digest, id) }
            wakeEngine()
            record.position = position
            return record
        }
        metrics.countGeneration(outcome: .refused)
        throw refusal
    }

    /// Waits until a job is done; nil when there is no such job.
    func outcome(of id: UUID) async -> JobRecord? {
        guard let number = numbers[id], let record = snapshot(number) else { return nil }
        if record.state.isFinal { return record }
        return await withCheckedContinuation { entries[number]?.waiters.append($0) }
    }

    /// A job as it is now; nil when there is no such job, or none any more.
    func record(_ id: UUID) -> JobRecord? {
        numbers[id].flatMap { snapshot($0) }
    }

    /// Jobs as they are now, the newest first.
    ///
    /// - Parameters:
    ///   - state: Those in one state; nil for all.
    ///   - before: Those admitted before this one; nil for all.
    func records(in state: JobRecord.State?, before: UUID?, limit: Int) -> [JobRecord] {
        let end = before.map { numbers[$0]?.number ?? 0 } ?? .max
        let candidates = entries.keys.filter { $0.number < end }.sorted { $0.number > $1.number }
        return candidates.lazy.filter { state == nil || self.entries[$0]?.record.state == state }.prefix(limit)
            .compactMap { self.snapshot($0) }
    }

    /// A job as it is now and whenever that changes, until it is done; nil when there is no such job.
    ///
    /// Who reads slowly misses changes, but never the last.
    func changes(of id: UUID) -> AsyncStream<JobRecord>? {
        guard let number = numbers[id], let record = snapshot(number) else { return nil }
        let (stream, continuation) = AsyncStream<JobRecord>.makeStream(bufferingPolicy: .bufferingNewest(1))
        continuation.yield(record)
        guard !record.state.isFinal else {
            continuation.finish()
            return stream
        }
        lastWatcher += 1
        let watcher = lastWatcher
        continuation.onTermination = { _ in Task { await self.forget(watcher, of: number) } }
        entries[number]?.watchers[watcher] = continuation
        return stream
    }

    private func forget(_ watcher: Int, of job: JobID) {
        entries[job]?.watchers[watcher] = nil
    }

    /// Gives up a job: at once when it waits, after its present step when it runs.
    ///
    /// One that is done stays as it is.
    /// - Returns: The job; nil when there is no such job.
    @discardableResult
    func cancel(_ id: UUID) -> JobRecord? {
        guard let number = numbers[id] else { return nil }
        if state.cancel(number) == .removed {
            resolve(number, .cancelled)
            queueMoved()
        }
        return snapshot(number)
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
                guard let entry = entries[id] else { preconditionFailure("job \(id) was admitted without a record") }
                metrics.observeWait(seconds: entry.admitted.secondsUntilNow)
                change(id) { ($0.state, $0.started) = (.running, Date()) }
                queueMoved()
                return Job(id: id, request: entry.record.request, count: entry.record.count)
            }
        }
    }

    /// Notes how far the running job is.
    ///
    /// - Returns: False when it should be stopped.
    func advance(_ id: JobID, step: Int, of steps: Int) -> Bool {
        change(id) { ($0.step, $0.steps) = (step, steps) }
        return !state.isCancelled(id)
    }

    /// Notes that one of the running job's pictures is made and kept.
    func add(_ image: FinishedImage, to id: JobID) {
        change(id) { $0.images.append(image) }
    }

    /// Ends the running job and answers who waits for it.
    ///
    /// - Parameter failure: Why not all of its pictures were made; nil when they were.
    func finish(_ id: JobID, _ failure: JobFailure?) {
        state.finish(id)
        if failure == nil, let images = entries[id]?.record.images {
            recentSeconds.append(images.reduce(0) { $0 + $1.seconds })
            if recentSeconds.count > 16 { recentSeconds.removeFirst() }
        }
        resolve(id, failure)
    }

    // MARK: For the service

    /// Refuses what waits and what comes; the running job is finished.
    func drain() -> StateMachine.Drain {
        let drain = state.drain()
        for id in drain.refused { resolve(id, .shuttingDown) }
        wakeEngine()
        return drain
    }

    // MARK: Records

    /// A job as it is now, with its place in the queue and what is left of its time.
    private func snapshot(_ id: JobID) -> JobRecord? {
        guard var record = entries[id]?.record else { return nil }
        switch record.state {
        case .queued:
            record.position = state.waiting.firstIndex(of: id).map { $0 + (state.running == nil ? 0 : 1) }
        case .running:
            if let started = record.started, let steps = record.steps, record.step > 0 {
                record.remainingSeconds =
                    -started.timeIntervalSinceNow * Double(steps - record.step) / Double(record.step)
            }
        case .completed, .failed, .cancelled: break
        }
        return record
    }

    /// Changes a job and tells who watches it.
    private func change(_ id: JobID, _ body: (inout JobRecord) -> Void) {
        guard var entry = entries[id] else { return }
        body(&entry.record)
        entry.record.version += 1
        entries[id] = entry
        guard !entry.watchers.isEmpty, let record = snapshot(id) else { return }
        for watcher in entry.watchers.values { watcher.yield(record) }
    }

    /// Those who wait have another place now.
    private func queueMoved() {
        for id in state.waiting { change(id) { _ in } }
    }

    private func resolve(_ id: JobID, _ failure: JobFailure?) {
        change(id) { record in
            record.finished = Date()
            record.request.source?.pixels = []
            record.request.source?.mask = nil
            record.failure = failure
            record.state = failure == nil ? .completed : failure == .cancelled ? .cancelled : .failed
        }
        metrics.countGeneration(outcome: JobQueue.outcome(failure))
        guard let entry = entries[id] else { return }
        for waiter in entry.waiters { waiter.resume(returning: entry.record) }
        for watcher in entry.watchers.values { watcher.finish() }
        entries[id]?.waiters = []
        entries[id]?.watchers = [:]
        history.append(id)
        if history.count > Self.historyLength { forget(history.removeFirst()) }
    }

    private func forget(_ id: JobID) {
        guard let entry = entries.removeValue(forKey: id) else { return }
        numbers[entry.record.id] = nil
        if let key = entry.key { keys[key] = nil }
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

extension JobQueue {
    /// The outcome of a job as `/metrics` counts it.
    fileprivate static func outcome(_ failure: JobFailure?) -> Metrics.Outcome {
        switch failure {
        case nil: .done
        case .generation(.invalid): .invalid
        case .cancelled: .cancelled
        case .shuttingDown, .loading, .queueFull, .keyReused: .refused
        case .generation, .model, .storage, .internal: .failed
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
