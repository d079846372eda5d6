// Platforms and devices: what is there, what each can do, and which one a configuration chooses.

internal import COpenCL

/// The kind of processor behind a device.
public enum DeviceKind: String, Sendable {
    /// A host processor, such as through PoCL.
    case cpu
    /// A graphics processor.
    case gpu
    /// Anything else.
    case accelerator
}

/// The generation of an NVIDIA GPU, such as 8.6; it says which instructions there are.
public struct ComputeCapability: Sendable, Hashable, Comparable, CustomStringConvertible {
    /// The number before the point.
    public let major: Int
    /// The number after the point.
    public let minor: Int

    /// A capability of two numbers.
    public init(major: Int, minor: Int) {
        self.major = major
        self.minor = minor
    }

    /// As NVIDIA writes it, "8.6".
    public var description: String { "\(major).\(minor)" }

    /// Earlier generations first.
    public static func < (a: ComputeCapability, b: ComputeCapability) -> Bool {
        (a.major, a.minor) < (b.major, b.minor)
    }
}

/// An OpenCL device and its properties, read once.
///
/// The corresponding OpenCL function is `clGetDeviceInfo`.
public struct Device: @unchecked Sendable {
    // cl_device_id and cl_platform_id of root devices live as long as the process; they may be used from any thread.
    let id: cl_device_id
    let platformID: cl_platform_id
    /// Name of the platform, such as "Portable Computing Language".
    public let platformName: String
    /// OpenCL version text of the platform, in which some name their own.
    public let platformVersion: String
    /// Position among all devices of all platforms, in the order the OpenCL loader gives them.
    public let globalIndex: Int
    /// Position within its platform.
    public let platformIndex: Int
    /// Name of the device.
    public let name: String
    /// OpenCL version text of the device.
    public let version: String
    /// Version text of its driver.
    public let driverVersion: String
    /// Kind of processor.
    public let kind: DeviceKind
    /// Parallel compute units.
    public let computeUnits: Int
    /// Highest clock in MHz, 0 when unknown.
    public let maxClockMHz: Int
    /// Global memory in bytes.
    public let globalMemoryBytes: Int
    /// Largest single allocation in bytes.
    public let maxAllocationBytes: Int
    /// Local memory of a work-group in bytes.
    public let localMemoryBytes: Int
    /// Largest number of work-items in a work-group.
    public let maxWorkGroupSize: Int
    /// Largest work-group size in each dimension.
    public let maxWorkItemSizes: [Int]
    /// Floats in the vector the device's instructions work on.
    public let nativeFloatVectorWidth: Int
    /// Extension names.
    public let extensions: Set<String>
    /// The generation of an NVIDIA GPU; nil for other devices.
    public let computeCapability: ComputeCapability?

    init(id: cl_device_id, platformID: cl_platform_id, globalIndex: Int, platformIndex: Int) throws(OpenCLError) {
        self.id = id
        self.platformID = platformID
        self.globalIndex = globalIndex
        self.platformIndex = platformIndex
        platformName = try Device.string(platform: platformID, CL_PLATFORM_NAME)
        platformVersion = try Device.string(platform: platformID, CL_PLATFORM_VERSION)
        name = try Device.string(device: id, CL_DEVICE_NAME)
        version = try Device.string(device: id, CL_DEVICE_VERSION)
        driverVersion = try Device.string(device: id, CL_DRIVER_VERSION)
        let type: cl_device_type = try Device.value(id, CL_DEVICE_TYPE, 0)
        kind =
            if type & cl_device_type(CL_DEVICE_TYPE_GPU) != 0 {
                .gpu
            } else if type & cl_device_type(CL_DEVICE_TYPE_CPU) != 0 {
                .cpu
            } else {
                .accelerator
            }
        computeUnits = Int(try Device.value(id, CL_DEVICE_MAX_COMPUTE_UNITS, cl_uint(0)))
        maxClockMHz = Int(try Device.value(id, CL_DEVICE_MAX_CLOCK_FREQUENCY, cl_uint(0)))
        globalMemoryBytes = Int(clamping: try Device.value(id, CL_DEVICE_GLOBAL_MEM_SIZE, cl_ulong(0)))
        maxAllocationBytes = Int(clamping: try Device.value(id, CL_DEVICE_MAX_MEM_ALLOC_SIZE, cl_ulong(0)))
        localMemoryBytes = Int(clamping: try Device.value(id, CL_DEVICE_LOCAL_MEM_SIZE, cl_ulong(0)))
        maxWorkGroupSize = Int(try Device.value(id, CL_DEVICE_MAX_WORK_GROUP_SIZE, 0))
        nativeFloatVectorWidth = Int(try Device.value(id, CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT, cl_uint(0)))
        extensions = Set(try Device.string(device: id, CL_DEVICE_EXTENSIONS).split(separator: " ").map(String.init))
        computeCapability =
            if extensions.contains("cl_nv_device_attribute_query"),
                // A driver that names the extension and refuses its queries is an odd one, but a device all the same.
                let major = try? Device.value(id, Device.computeCapabilityMajor, cl_uint(0)),
                let minor = try? Device.value(id, Device.computeCapabilityMinor, cl_uint(0))
            {
                ComputeCapability(major: Int(major), minor: Int(minor))
            } else {
                nil
            }
        let dimensions = Int(try Device.value(id, CL_DEVICE_MAX_WORK_ITEM_DIMENSIONS, cl_uint(0)))
        var sizes = [Int](repeating: 0, count: max(dimensions, 3))
        try check(
            clGetDeviceInfo(id, cl_device_info(CL_DEVICE_MAX_WORK_ITEM_SIZES), sizes.count * 8, &sizes, nil),
            "clGetDeviceInfo"
        )
        maxWorkItemSizes = sizes
    }

    /// Whether this is the processor the program runs on and it multiplies pairs of bfloat16 (AVX512-BF16).
    public var hasBFloat16DotProduct: Bool { kind == .cpu && diffused_has_avx512_bf16() != 0 }

    /// Whether the driver compiles several programs at once; PoCL has one lock for all (measured with 3.1, also in contexts of their own).
    public var buildsInParallel: Bool { !isPoCL }

    /// Whether this is PoCL, which keeps what it compiled on disk by itself.
    var isPoCL: Bool { platformName == "Portable Computing Language" }

    /// Every device of every platform, in the loader's order; empty when no OpenCL driver is installed.
    public static func all() throws(OpenCLError) -> [Device] {
        var platformCount: cl_uint = 0
        let status = clGetPlatformIDs(0, nil, &platformCount)
        // The loader reports "no platform" as an error of its own.
        if status == -1001 { return [] }
        try check(status, "clGetPlatformIDs")
        if platformCount == 0 { return [] }
        var platforms = [cl_platform_id?](repeating: nil, count: Int(platformCount))
        try check(clGetPlatformIDs(platformCount, &platforms, nil), "clGetPlatformIDs")
        var devices: [Device] = []
        for platform in platforms.compactMap({ $0 }) {
            var count: cl_uint = 0
            guard clGetDeviceIDs(platform, cl_device_type(CL_DEVICE_TYPE_ALL), 0, nil, &count) == CL_SUCCESS, count > 0
            else { continue }
            var ids = [cl_device_id?](repeating: nil, count: Int(count))
            try check(
                clGetDeviceIDs(platform, cl_device_type(CL_DEVICE_TYPE_ALL), count, &ids, nil),
                "clGetDeviceIDs"
            )
            for (index, id) in ids.compactMap({ $0 }).enumerated() {
                devices.append(
                    try Device(id: id, platformID: platform, globalIndex: devices.count, platformIndex: index)
                )
            }
        }
        return devices
    }

    // CL_DEVICE_COMPUTE_CAPABILITY_MAJOR_NV and _MINOR_NV of cl_nv_device_attribute_query, which <CL/cl.h> does not define.
    private static let computeCapabilityMajor: Int32 = 0x4000
    private static let computeCapabilityMinor: Int32 = 0x4001

    private static func string(platform: cl_platform_id, _ name: Int32) throws(OpenCLError) -> String {
        try string { clGetPlatformInfo(platform, cl_platform_info(name), $0, $1, $2) }
    }

    private static func string(device: cl_device_id, _ name: Int32) throws(OpenCLError) -> String {
        try string { clGetDeviceInfo(device, cl_device_info(name), $0, $1, $2) }
    }

    private static func string(
        _ query: (Int, UnsafeMutableRawPointer?, UnsafeMutablePointer<Int>?) -> cl_int
    ) throws(OpenCLError) -> String {
        var size = 0
        try check(query(0, nil, &size), "clGetDeviceInfo")
        var bytes = [UInt8](repeating: 0, count: size)
        try check(query(size, &bytes, nil), "clGetDeviceInfo")
        let text = String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        return text.split(separator: " ", omittingEmptySubsequences: true).joined(separator: " ")
    }

    private static func value<T: BitwiseCopyable>(_ id: cl_device_id, _ name: Int32, _ initial: T) throws(OpenCLError)
        -> T
    {
        var value = initial
        try check(clGetDeviceInfo(id, cl_device_info(name), MemoryLayout<T>.size, &value, nil), "clGetDeviceInfo")
        return value
    }
}

/// Why no device could be chosen.
public enum DeviceSelectionError: Error, Sendable, Equatable, CustomStringConvertible {
    /// No OpenCL driver is installed, or none finds a device.
    case noDevices
    /// The configuration asks for a platform or an index that is not there.
    case noMatch(asked: String, found: [String])

    /// What was looked for and what to do.
    public var description: String {
        switch self {
        case .noDevices:
            """
            no OpenCL device found: the OpenCL loader (ocl-icd) lists no platform. Looked for drivers in \
            /etc/OpenCL/vendors (or OCL_ICD_VENDORS). Install a driver: for a processor `apt install pocl-opencl-icd`, for an \
            NVIDIA GPU `nvidia-opencl-icd`, for Intel `intel-opencl-icd`, for AMD `mesa-opencl-icd` or ROCm; then check with \
            `diffused devices`. PoCL shows no device either when it cannot write its cache: set POCL_CACHE_DIR to a \
            directory that this user can write
            """
        case .noMatch(let asked, let found):
            "no OpenCL device matches \(asked); found: \(found.joined(separator: "; ")). See `diffused devices`"
        }
    }
}

extension Device {
    /// Chooses a device: GPUs before accelerators before processors, then the one with more compute units.
    ///
    /// - Parameters:
    ///   - platform: Part of a platform's name, without regard to case; nil for any.
    ///   - index: Position within the named platform, or among all devices when no platform is named.
    /// - Throws: `DeviceSelectionError` or `OpenCLError`.
    public static func choose(platform: String? = nil, index: Int? = nil) throws -> Device {
        let devices = try all()
        guard !devices.isEmpty else { throw DeviceSelectionError.noDevices }
        var candidates = devices
        if let platform {
            candidates = candidates.filter { $0.platformName.lowercased().contains(platform.lowercased()) }
        }
        if let index {
            candidates = candidates.filter { (platform == nil ? $0.globalIndex : $0.platformIndex) == index }
        }
        guard let best = candidates.max(by: { $0.preference < $1.preference }) else {
            let asked = [platform.map { "platform \"\($0)\"" }, index.map { "index \($0)" }].compactMap { $0 }
            throw DeviceSelectionError.noMatch(
                asked: asked.joined(separator: ", "),
                found: devices.map { "\($0.globalIndex): \($0.platformName): \($0.name)" }
            )
        }
        return best
    }

    /// Orders devices: kind first, then compute units; earlier devices win ties.
    private var preference: (Int, Int, Int) {
        let rank =
            switch kind {
            case .gpu: 2
            case .accelerator: 1
            case .cpu: 0
            }
        return (rank, computeUnits, -globalIndex)
    }
}
