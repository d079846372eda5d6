// The device's memory for the layers above: what a computation would take, what there is, and how thrifty to be.

internal import OpenCLRuntime

/// The memory a computation takes besides what it starts with.
public struct MemoryNeed: Sendable, Equatable {
    /// The most bytes allocated at once.
    public var peakBytes: Int
    /// The largest single allocation in bytes.
    public var largestAllocation: Int

    /// A need from its parts.
    public init(peakBytes: Int, largestAllocation: Int) {
        self.peakBytes = peakBytes
        self.largestAllocation = largestAllocation
    }
}

extension TensorDevice {
    /// The memory that `body` takes besides weights and what is alive already; see `BufferPool.need`.
    public func memoryNeed(of body: () throws -> Void) rethrows -> MemoryNeed {
        let need = try pool.need(of: body)
        return MemoryNeed(peakBytes: need.peakBytes, largestAllocation: need.largestAllocation)
    }

    /// Bytes that may be allocated in all: the device's memory, or less, which makes it a smaller device.
    public var memoryBytes: Int {
        get { queue.limits.totalBytes }
        set { queue.limits.totalBytes = newValue }
    }

    /// Bytes of the largest single allocation, likewise.
    public var maxAllocationBytes: Int {
        get { queue.limits.allocationBytes }
        set { queue.limits.allocationBytes = newValue }
    }

    /// Bytes of all activations, those that no tensor uses included.
    public var heldBytes: Int { pool.heldBytes }

    /// The most bytes of activations since unused memory was released.
    public var highWaterBytes: Int { pool.highWaterBytes }

    /// Bytes that activations can ever have: all but the weights and what else is kept.
    public var activationBytes: Int {
        max(0, memoryBytes - (queue.allocatedBytes - pool.heldBytes))
    }

    /// Bytes that activations can have now.
    ///
    /// Where the device shares the host's memory, no more than the host has left: unused buffers are reused, so they count as free.
    public var availableBytes: Int {
        let free = max(0, memoryBytes - (queue.allocatedBytes - pool.unusedBytes))
        guard sharesHostMemory, let host = hostAvailableBytes() else { return free }
        return min(free, max(0, host - TensorDevice.hostReserveBytes) + pool.unusedBytes)
    }

    /// Whether buffers are the host's memory.
    public var sharesHostMemory: Bool { queue.device.kind == .cpu }

    /// What is left to the rest of the machine, and to what this process allocates beside its buffers.
    static let hostReserveBytes = 256 << 20

}
