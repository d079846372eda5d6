// The rules of the queue, without tasks or time.

import Testing

@testable import Serving

private typealias StateMachine = JobQueue.StateMachine

private func id(_ number: UInt64) -> JobQueue.JobID { JobQueue.JobID(number: number) }

private func serving(capacity: Int = 2) -> StateMachine {
    var machine = StateMachine(capacity: capacity)
    _ = machine.startServing()
    return machine
}

@Suite struct JobQueueStateMachineTests {
    @Test func nothingIsAdmittedWhileLoading() {
        var machine = StateMachine(capacity: 2)
        #expect(machine.admit() == .loading)
        #expect(machine.next() == .wait)
        let isOpen = machine.startServing()
        #expect(isOpen)
        #expect(machine.admit() == .admitted(id(1), position: 0))
    }

    @Test func firstComeFirstServed() {
        var machine = serving()
        #expect(machine.next() == .wait)
        #expect(machine.admit() == .admitted(id(1), position: 0))
        #expect(machine.admit() == .admitted(id(2), position: 1))
        #expect(machine.next() == .run(id(1)))
        #expect(machine.admit() == .admitted(id(3), position: 2))
        machine.finish(id(1))
        #expect(machine.next() == .run(id(2)))
        machine.finish(id(2))
        #expect(machine.next() == .run(id(3)))
        machine.finish(id(3))
        #expect(machine.next() == .wait)
    }

    @Test func capacityCountsThoseThatWait() {
        var machine = serving(capacity: 1)
        _ = machine.admit()
        #expect(machine.next() == .run(id(1)))
        #expect(machine.admit() == .admitted(id(2), position: 1))
        #expect(machine.admit() == .full(waiting: 1))
        machine.finish(id(1))
        // The engine takes the waiting one at once, so its place counts as free.
        #expect(machine.admit() == .admitted(id(3), position: 1))
        #expect(machine.admit() == .full(waiting: 2))
    }

    @Test func cancelOfAWaitingJobFreesItsPlace() {
        var machine = serving(capacity: 1)
        _ = machine.admit()
        _ = machine.next()
        _ = machine.admit()
        #expect(machine.cancel(id(2)) == .removed)
        #expect(machine.cancel(id(2)) == .unknown)
        #expect(machine.admit() == .admitted(id(3), position: 1))
    }

    @Test func cancelOfTheRunningJobIsRemembered() {
        var machine = serving()
        _ = machine.admit()
        _ = machine.admit()
        _ = machine.next()
        #expect(!machine.isCancelled(id(1)))
        #expect(machine.cancel(id(1)) == .stopping)
        #expect(machine.isCancelled(id(1)))
        machine.finish(id(1))
        #expect(machine.next() == .run(id(2)))
        #expect(!machine.isCancelled(id(2)))
    }

    @Test func drainRefusesWhatWaitsAndFinishesWhatRuns() {
        var machine = serving(capacity: 8)
        for _ in 0..<3 { _ = machine.admit() }
        _ = machine.next()
        #expect(machine.drain() == .init(refused: [id(2), id(3)], wasLoading: false))
        #expect(machine.admit() == .draining)
        #expect(machine.running == id(1))
        machine.finish(id(1))
        #expect(machine.next() == .stop)
        #expect(machine.drain() == .init(refused: [], wasLoading: false))
    }

    @Test func drainWhileLoading() {
        var machine = StateMachine(capacity: 1)
        #expect(machine.drain() == .init(refused: [], wasLoading: true))
        let isOpen = machine.startServing()
        #expect(!isOpen)
        #expect(machine.phase == .draining)
        #expect(machine.next() == .stop)
    }

    /// Random events keep the promises: order, capacity, one job at a time, nothing lost.
    @Test func randomEvents() {
        var generator = SystemRandomNumberGenerator()
        for capacity in 1...5 {
            var machine = serving(capacity: capacity)
            var expected: [JobQueue.JobID] = []
            for _ in 0..<2000 {
                switch Int.random(in: 0..<4, using: &generator) {
                case 0, 1:
                    if case .admitted(let id, let position) = machine.admit() {
                        #expect(position == expected.count + (machine.running == nil ? 0 : 1))
                        expected.append(id)
                    }
                case 2:
                    if let running = machine.running {
                        machine.finish(running)
                    } else if case .run(let id) = machine.next() {
                        #expect(id == expected.removeFirst())
                    }
                default:
                    if let id = expected.randomElement(using: &generator) {
                        #expect(machine.cancel(id) == .removed)
                        expected.removeAll { $0 == id }
                    }
                }
                #expect(machine.waiting == expected)
                #expect(machine.waiting.count <= capacity + (machine.running == nil ? 1 : 1))
            }
        }
    }
}
