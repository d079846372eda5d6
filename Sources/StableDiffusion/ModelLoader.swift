// Several models on one device: they share its queue, its memory and its kernels, and come and go one by one.

public import Logging
internal import TensorOps

/// Loads models onto a device, one after another.
///
/// Used from one executor only. A model that nobody holds any more is gone; its memory is the device's again.
public protocol ModelLoader: AnyObject {
    /// What a model's files say before it is loaded.
    ///
    /// - Throws: What is wrong with them.
    func outline(_ options: PipelineOptions) throws -> ModelOutline

    /// Loads a model beside those that are loaded.
    ///
    /// - Throws: What is wrong with its files or with the device; `GenerationError.outOfDeviceMemory` where others would have to go first.
    func load(_ options: PipelineOptions) throws -> any ImageGenerator

    /// Bytes that weights and pictures can still have; nil before there is a device.
    var availableBytes: Int? { get }

    /// Gives the device the memory back that pictures of other models or other sizes have left.
    func releaseUnusedMemory()
}

/// Loads pipelines onto an OpenCL device, which the first one's options choose.
public final class PipelineLoader: ModelLoader {
    private let logger: Logger
    /// By the storage of weights; all on one queue.
    private var devices: [Precision: TensorDevice] = [:]

    /// A loader without a device yet.
    public init(logger: Logger) {
        self.logger = logger
    }

    /// See `PipelineOptions`.
    public func outline(_ options: PipelineOptions) throws -> ModelOutline { try options.outline() }

    /// Loads a model; see `StableDiffusionPipeline`.
    public func load(_ options: PipelineOptions) throws -> any ImageGenerator {
        do {
            return try StableDiffusionPipeline(options, logger: logger) { try device(options) }
        } catch {
            devices.values.first?.releaseUnusedMemory()
            guard case .outOfMemory(let bytes, let reason) = DeviceFailure(error) else { throw error }
            throw GenerationError.outOfDeviceMemory(bytes: bytes, reason: reason)
        }
    }

    private func device(_ options: PipelineOptions) throws -> TensorDevice {
        if let device = devices[options.precision] { return device }
        let device: TensorDevice
        if let other = devices.values.first {
            device = try other.storingWeights(as: ElementType(options.precision))
            try device.useGEMM(options)
        } else {
            device = try TensorDevice(options, logger: logger)
        }
        devices[options.precision] = device
        return device
    }

    /// See `ModelLoader`.
    public var availableBytes: Int? { devices.values.first?.availableBytes }

    /// See `ModelLoader`.
    public func releaseUnusedMemory() {
        devices.values.first?.releaseUnusedMemory()
    }
}
