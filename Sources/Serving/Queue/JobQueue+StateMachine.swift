// The rules of the queue, without time, tasks or devices: who may enter, who is next, what a cancelled job and a
// shutdown mean. Methods change the state and return what the caller has to do.

extension JobQueue {
    /// A job's place in the books; counts up from 1.
    struct JobID: Hashable, Sendable, CustomStringConvertible {
        let number: UInt64
        var description: String { String(number) }
    }

    /// The queue's state and its transitions.
    struct StateMachine {
        /// What the service is doing as a whole.
        enum Phase: Equatable {
            /// The model is being loaded; nothing is admitted.
            case loading
            /// Jobs are admitted and run.
            case serving
            /// The running job is finished and nothing is admitted.
            case draining
        }

        /// What becomes of a new job.
        enum Admission: Equatable {
            /// It waits; `position` jobs are run before it.
            case admitted(JobID, position: Int)
            /// All places are taken.
            case full(waiting: Int)
            /// The model is not there yet.
            case loading
            /// The service is going down.
            case draining
        }

        /// What the engine does next.
        enum Next: Equatable {
            /// Runs this job.
            case run(JobID)
            /// Waits for a job.
            case wait
            /// Stops for good.
            case stop
        }

        /// What a cancellation leads to.
        enum Cancellation: Equatable {
            /// The job waited and is gone; its client must be answered.
            case removed
            /// The job runs and is stopped after its present step.
            case stopping
            /// There is no such job, or it is finished.
            case unknown
        }

        /// What a shutdown leads to.
        struct Drain: Equatable {
            /// Jobs that waited and will not run; their clients must be answered.
            let refused: [JobID]
            /// Whether the model was still being loaded, which nobody has to wait for any more.
            let wasLoading: Bool
        }

        /// Jobs that may wait behind the running one.
        let capacity: Int
        private(set) var phase = Phase.loading
        private(set) var waiting: [JobID] = []
        private(set) var running: JobID?
        private var runningIsCancelled = false
        private var lastNumber: UInt64 = 0

        init(capacity: Int) {
            self.capacity = capacity
        }

        /// The model is loaded and has drawn once.
        ///
        /// - Returns: false when the service is already going down.
        mutating func startServing() -> Bool {
            guard phase == .loading else { return false }
            phase = .serving
            return true
        }

        /// A client asks for a picture.
        mutating func admit() -> Admission {
            switch phase {
            case .loading: return .loading
            case .draining: return .draining
            case .serving: break
            }
            // A job that finds the engine idle is taken at once and needs no place of those that wait.
            let places = running == nil ? capacity + 1 : capacity
            guard waiting.count < places else { return .full(waiting: waiting.count) }
            lastNumber += 1
            let id = JobID(number: lastNumber)
            waiting.append(id)
            return .admitted(id, position: waiting.count - 1 + (running == nil ? 0 : 1))
        }

        /// The engine is free: first come, first served.
        mutating func next() -> Next {
            precondition(running == nil, "the engine runs one job at a time; it has not finished job \(running as Any)")
            switch phase {
            case .loading: return .wait
            case .draining: return .stop
            case .serving:
                guard !waiting.isEmpty else { return .wait }
                let id = waiting.removeFirst()
                running = id
                runningIsCancelled = false
                return .run(id)
            }
        }

        /// Whether the running job should be stopped after its present step.
        func isCancelled(_ id: JobID) -> Bool {
            running == id && runningIsCancelled
        }

        /// The engine is done with a job, one way or the other.
        mutating func finish(_ id: JobID) {
            precondition(running == id, "job \(id) is not the one that runs")
            running = nil
        }

        /// A job is not wanted any more.
        mutating func cancel(_ id: JobID) -> Cancellation {
            if let index = waiting.firstIndex(of: id) {
                waiting.remove(at: index)
                return .removed
            }
            guard running == id else { return .unknown }
            runningIsCancelled = true
            return .stopping
        }

        /// The service goes down: what runs is finished, what waits is refused.
        ///
        /// Again is harmless.
        mutating func drain() -> Drain {
            let result = Drain(refused: waiting, wasLoading: phase == .loading)
            phase = .draining
            waiting = []
            return result
        }
    }
}
