// The one thread that may touch the device. Device calls block, sometimes for minutes, so they run neither on the
// cooperative pool, whose threads everything else needs, nor on an event loop. A thread of its own rather than a
// dispatch queue, because compilers inside OpenCL drivers want a deep stack.

internal import Foundation

/// A serial executor on a dedicated thread, for an actor that blocks.
final class DeviceExecutor: SerialExecutor {
    /// What the thread and the executor share.
    ///
    /// The thread keeps this alone alive, so that the executor can go.
    private final class Mailbox: @unchecked Sendable {
        // `condition` guards both properties.
        private let condition = NSCondition()
        private var jobs: [(job: UnownedJob, executor: UnownedSerialExecutor)] = []
        private var isClosed = false

        func post(_ job: UnownedJob, for executor: UnownedSerialExecutor) {
            condition.withLock {
                jobs.append((job, executor))
                condition.signal()
            }
        }

        func close() {
            condition.withLock {
                isClosed = true
                condition.signal()
            }
        }

        /// Runs jobs in their order until the executor is gone.
        func run() {
            while let next = take() {
                next.job.runSynchronously(on: next.executor)
            }
        }

        private func take() -> (job: UnownedJob, executor: UnownedSerialExecutor)? {
            condition.withLock {
                while jobs.isEmpty && !isClosed { condition.wait() }
                return jobs.isEmpty ? nil : jobs.removeFirst()
            }
        }
    }

    /// Stack of the thread, in bytes.
    private static let stackSize = 16 << 20

    private let mailbox = Mailbox()

    init() {
        let mailbox = mailbox
        let thread = Thread { mailbox.run() }
        thread.name = "device"
        thread.stackSize = Self.stackSize
        thread.start()
    }

    deinit {
        mailbox.close()
    }

    func enqueue(_ job: consuming ExecutorJob) {
        mailbox.post(UnownedJob(job), for: asUnownedSerialExecutor())
    }
}
