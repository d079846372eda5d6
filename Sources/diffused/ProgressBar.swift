// How far something is, on a terminal.

internal import Foundation

/// A bar on standard error that redraws itself; silent when standard error is no terminal.
struct ProgressBar {
    private static let width = 30
    /// Redrawing more often than this is seen by nobody.
    private static let interval = Duration.milliseconds(100)

    private let total: Int
    private let words: (_ done: Int, _ total: Int, _ perSecond: Double) -> String
    private let isVisible = isatty(STDERR_FILENO) == 1
    /// What was done already when the first of it was shown, and when that was.
    private var begin: (done: Int, at: ContinuousClock.Instant)?
    private var lastDrawn: ContinuousClock.Instant?

    /// A bar of something that is counted.
    ///
    /// - Parameter words: What is written beside it; the speed is 0 while it is not known.
    init(total: Int, words: @escaping (_ done: Int, _ total: Int, _ perSecond: Double) -> String) {
        self.total = total
        self.words = words
    }

    /// A bar of denoising steps, of which none is done.
    init(steps: Int) {
        self.init(total: steps) { done, total, perSecond in
            guard perSecond > 0 else { return "\(done)/\(total)" }
            let left = String(format: "%.2f s a step, %.0f s left", 1 / perSecond, Double(total - done) / perSecond)
            return "\(done)/\(total) \(left)"
        }
        show(0)
    }

    /// Redraws the bar.
    mutating func show(_ done: Int) {
        guard isVisible else { return }
        let now = ContinuousClock.now
        let begin = begin ?? (done, now)
        self.begin = begin
        if let lastDrawn, done < total, now - lastDrawn < Self.interval { return }
        lastDrawn = now
        let seconds = (now - begin.at) / .seconds(1)
        draw(done, done > begin.done && seconds > 0 ? Double(done - begin.done) / seconds : 0)
    }

    /// Ends the line.
    func finish() {
        if isVisible, lastDrawn != nil { Diffused.write("\n") }
    }

    private func draw(_ done: Int, _ perSecond: Double) {
        let filled = total > 0 ? min(Self.width * done / total, Self.width) : 0
        let bar = String(repeating: "█", count: filled) + String(repeating: "░", count: Self.width - filled)
        // The escape clears what a longer line left.
        Diffused.write("\r\(bar) \(words(done, total, perSecond))\u{1B}[K")
    }
}
