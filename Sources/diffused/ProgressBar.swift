// How far a generation is, on a terminal.

internal import Foundation

/// A bar on standard error that redraws itself; silent when standard error is no terminal.
struct ProgressBar {
    private static let width = 30

    private let total: Int
    private let isVisible = isatty(STDERR_FILENO) == 1
    private let start = ContinuousClock.now

    /// A bar of so many steps.
    init(total: Int) {
        self.total = total
        if isVisible { draw(0, time: "") }
    }

    /// Redraws the bar.
    func show(_ done: Int) {
        guard isVisible, done > 0, total > 0 else { return }
        let elapsed = ContinuousClock.now - start
        let seconds = Double(elapsed.components.seconds) + Double(elapsed.components.attoseconds) * 1e-18
        let perStep = seconds / Double(done)
        draw(done, time: String(format: "%.2f s a step, %.0f s left", perStep, perStep * Double(total - done)))
    }

    /// Ends the line.
    func finish() {
        if isVisible { Diffused.write("\n") }
    }

    private func draw(_ done: Int, time: String) {
        let filled = total > 0 ? Self.width * done / total : 0
        let bar = String(repeating: "█", count: filled) + String(repeating: "░", count: Self.width - filled)
        // The escape clears what a longer line left.
        Diffused.write("\r\(bar) \(done)/\(total) \(time)\u{1B}[K")
    }
}
