// Status codes and errors of OpenCL and CLBlast, and the one place where a status becomes an error.

internal import COpenCL

/// A status code of OpenCL or CLBlast.
///
/// A struct, so that codes this project does not know survive.
public struct OpenCLStatus: RawRepresentable, Sendable, Hashable, CustomStringConvertible {
    /// The number as the C function returned it.
    public let rawValue: Int32

    /// A status from its number.
    public init(rawValue: Int32) {
        self.rawValue = rawValue
    }

    /// `CL_SUCCESS`.
    public static let success = OpenCLStatus(rawValue: 0)
    /// `CL_MEM_OBJECT_ALLOCATION_FAILURE`.
    public static let memoryObjectAllocationFailure = OpenCLStatus(rawValue: -4)
    /// `CL_OUT_OF_RESOURCES`.
    public static let outOfResources = OpenCLStatus(rawValue: -5)
    /// `CL_OUT_OF_HOST_MEMORY`.
    public static let outOfHostMemory = OpenCLStatus(rawValue: -6)
    /// `CL_BUILD_PROGRAM_FAILURE`.
    public static let buildProgramFailure = OpenCLStatus(rawValue: -11)
    /// `CL_INVALID_BUFFER_SIZE`.
    public static let invalidBufferSize = OpenCLStatus(rawValue: -61)

    /// Whether the device or the host had too little memory.
    public var isOutOfMemory: Bool {
        [.memoryObjectAllocationFailure, .outOfResources, .outOfHostMemory, .invalidBufferSize].contains(self)
    }

    /// The constant's name in `CL/cl.h`, `cl_ext.h` or `clblast_c.h`, and the number.
    public var description: String {
        guard let name = OpenCLStatus.names[rawValue] else { return "status \(rawValue)" }
        return "\(name) (\(rawValue))"
    }

    private static let names: [Int32: String] = [
        0: "CL_SUCCESS", -1: "CL_DEVICE_NOT_FOUND", -2: "CL_DEVICE_NOT_AVAILABLE", -3: "CL_COMPILER_NOT_AVAILABLE",
        -4: "CL_MEM_OBJECT_ALLOCATION_FAILURE", -5: "CL_OUT_OF_RESOURCES", -6: "CL_OUT_OF_HOST_MEMORY",
        -7: "CL_PROFILING_INFO_NOT_AVAILABLE", -8: "CL_MEM_COPY_OVERLAP", -11: "CL_BUILD_PROGRAM_FAILURE",
        -12: "CL_MAP_FAILURE", -13: "CL_MISALIGNED_SUB_BUFFER_OFFSET",
        -14: "CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST",
        -30: "CL_INVALID_VALUE", -31: "CL_INVALID_DEVICE_TYPE", -32: "CL_INVALID_PLATFORM", -33: "CL_INVALID_DEVICE",
        -34: "CL_INVALID_CONTEXT", -35: "CL_INVALID_QUEUE_PROPERTIES", -36: "CL_INVALID_COMMAND_QUEUE",
        -37: "CL_INVALID_HOST_PTR", -38: "CL_INVALID_MEM_OBJECT", -42: "CL_INVALID_BINARY",
        -43: "CL_INVALID_BUILD_OPTIONS",
        -44: "CL_INVALID_PROGRAM", -45: "CL_INVALID_PROGRAM_EXECUTABLE", -46: "CL_INVALID_KERNEL_NAME",
        -47: "CL_INVALID_KERNEL_DEFINITION", -48: "CL_INVALID_KERNEL", -49: "CL_INVALID_ARG_INDEX",
        -50: "CL_INVALID_ARG_VALUE", -51: "CL_INVALID_ARG_SIZE", -52: "CL_INVALID_KERNEL_ARGS",
        -53: "CL_INVALID_WORK_DIMENSION", -54: "CL_INVALID_WORK_GROUP_SIZE", -55: "CL_INVALID_WORK_ITEM_SIZE",
        -56: "CL_INVALID_GLOBAL_OFFSET", -57: "CL_INVALID_EVENT_WAIT_LIST", -58: "CL_INVALID_EVENT",
        -59: "CL_INVALID_OPERATION", -61: "CL_INVALID_BUFFER_SIZE", -63: "CL_INVALID_GLOBAL_WORK_SIZE",
        -1001: "CL_PLATFORM_NOT_FOUND_KHR",
        -1024: "CLBlastNotImplemented", -1022: "CLBlastInvalidMatrixA", -1021: "CLBlastInvalidMatrixB",
        -1020: "CLBlastInvalidMatrixC", -2048: "CLBlastUnknownError", -2046: "CLBlastTemporaryBufferTooSmall",
        -2045: "CLBlastNoHalfPrecision", -2044: "CLBlastNoDoublePrecision",
    ]
}

/// A failed call into OpenCL or CLBlast.
public struct OpenCLError: Error, Sendable, Equatable, CustomStringConvertible {
    /// What the call returned.
    public let status: OpenCLStatus
    /// The C function.
    public let function: String
    /// What it was called for: kernel name, sizes, the build log.
    public let context: String
    /// For refused allocations, the bytes asked for.
    public let requestedBytes: Int?

    init(_ status: OpenCLStatus, _ function: String, context: String = "", requestedBytes: Int? = nil) {
        self.status = status
        self.function = function
        self.context = context
        self.requestedBytes = requestedBytes
    }

    /// Function, status and context in one line; a build log follows on lines of its own.
    public var description: String {
        context.isEmpty ? "\(function) failed: \(status)" : "\(function) failed: \(status): \(context)"
    }
}

/// Throws unless `status` is success.
///
/// `context` is evaluated on failure only.
func check(_ status: cl_int, _ function: String, _ context: @autoclosure () -> String = "") throws(OpenCLError) {
    guard status != CL_SUCCESS else { return }
    throw OpenCLError(OpenCLStatus(rawValue: status), function, context: context())
}
