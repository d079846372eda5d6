// What a kernel costs the thread that enqueues it. A GPU runs a UNet's small kernels in a few microseconds each: a host that takes longer than
// that to enqueue them is what a step waits for.

import Foundation
import TensorOps
import TestSupport
import Testing

@Suite(.requiresDevice)
@DeviceActor
struct LaunchCostTests {
    /// The processor time of this thread so far; what the device's own threads use does not count.
    private func threadMicroseconds() -> Double {
        var now = timespec()
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now)
        return Double(now.tv_sec) * 1e6 + Double(now.tv_nsec) / 1e3
    }

    /// Far below the bound with optimisation: 10 microseconds a launch, most of them PoCL's, which wakes its threads (PoCL 3.1, 2 cores of a Zen 3,
    /// 2026-11-25).
    ///
    /// The bound leaves room for builds without optimisation and for slow machines; what it catches is work that grows with the number of
    /// launches, kernels or buffers, or that waits.
    @Test func launchTakesLittleOfTheHost() throws {
        let device = try DeviceVariant(.cpu, .float32).device()
        let x = try device.tensor([Float](repeating: 1, count: 64), shape: [4, 16])
        let norm = try NormWeights(
            gamma: [Float](repeating: 1, count: 16),
            beta: [Float](repeating: 0, count: 16),
            on: device
        )
        let numbers = [Float](repeating: 0.5, count: 256)
        let linear = try numbers.withUnsafeBytes {
            let source = WeightSource(bytes: $0, type: .float32, outChannels: 16)
            return try ConvolutionWeights([source], bias: nil, inChannels: 16, on: device)
        }
        func run(_ rounds: Int) throws -> (launches: Int, microseconds: Double) {
            let (launches, start) = (device.launchCount, threadMicroseconds())
            for _ in 0..<rounds { _ = try x.layerNorm(norm, epsilon: 1e-5).linear(linear, residual: x) }
            let microseconds = threadMicroseconds() - start
            try device.finish()
            return (device.launchCount - launches, microseconds)
        }
        _ = try run(20)
        let (launches, microseconds) = try run(500)
        #expect(launches == 1000)
        #expect(microseconds / Double(launches) < 250)
    }
}
