// What the engine is doing this moment and since when, readable while its thread is inside a device call. Health checks
// and the watchdog tell a slow device from a hung one by it.

internal import Synchronization

/// A record of the unit of work in progress.
final class EngineActivity: Sendable {
    /// One blocking unit of work.
    enum Unit: String, Sendable {
        case load = "loading the model"
        case prepare = "encoding the prompt"
        case step = "a denoising step"
        case decode = "decoding the picture"
        case save = "saving the picture"
    }

    private struct Work {
        let unit: Unit
        let begin: ContinuousClock.Instant
        let allowance: Duration
    }

    private let work = Mutex<Work?>(nil)

    /// Longest time one unit may take before the device counts as hung.
    ///
    /// Half an hour for a load, whose kernels some drivers compile for minutes. Ten minutes for anything else up to 512 by
    /// 512 pixels, hundreds of times what a GPU needs and tens of times what a small CPU needs; with the area to the
    /// power 1.5 beyond that, because attention grows with its square and the rest linearly.
    static func allowance(for unit: Unit, pixels: Int) -> Duration {
        guard unit != .load else { return .seconds(1800) }
        let area = max(1, Double(pixels) / (512 * 512))
        return .seconds(600 * area * area.squareRoot())
    }

    /// Notes that a unit begins, runs it and notes that it ended.
    func during<Value>(
        _ unit: Unit,
        pixels: Int = 0,
        _ body: () throws -> Value
    ) rethrows -> Value {
        begin(unit, pixels: pixels, since: .now)
        defer { work.withLock { $0 = nil } }
        return try body()
    }

    /// Notes that a unit has been going on since an instant.
    func begin(_ unit: Unit, pixels: Int = 0, since begin: ContinuousClock.Instant) {
        let allowance = Self.allowance(for: unit, pixels: pixels)
        work.withLock { $0 = Work(unit: unit, begin: begin, allowance: allowance) }
    }

    /// What the engine hangs in, if it does.
    func stall(at now: ContinuousClock.Instant = .now) -> String? {
        work.withLock { work in
            guard let work, now - work.begin > work.allowance else { return nil }
            return "\(work.unit.rawValue) has taken more than \(work.allowance.components.seconds) seconds"
        }
    }
}
