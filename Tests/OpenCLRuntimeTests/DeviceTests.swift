// Listing devices and choosing one; statuses and their names.

import OpenCLRuntime
import TestSupport
import Testing

@Suite(.requiresDevice)
struct DeviceTests {
    @Test func listsEveryDeviceOnce() throws {
        let devices = try Device.all()
        #expect(devices.map(\.globalIndex) == Array(0..<devices.count))
        for device in devices {
            #expect(!device.name.isEmpty && !device.platformName.isEmpty && !device.version.isEmpty)
            #expect(device.computeUnits > 0)
            #expect(device.maxWorkGroupSize > 0)
            #expect(device.maxWorkItemSizes.count >= 3)
            #expect(device.maxAllocationBytes > 0 && device.maxAllocationBytes <= device.globalMemoryBytes)
            #expect(device.localMemoryBytes >= 16384, "what OpenCL guarantees at least")
        }
    }

    @Test func namedPlatformIsChosen() throws {
        let device = try testDevice.get()
        let part = String(device.platformName.prefix(5))
        for name in [part, part.uppercased(), part.lowercased()] {
            #expect(try Device.choose(platform: name).platformName.hasPrefix(part))
        }
        #expect(try Device.choose(index: device.globalIndex).globalIndex == device.globalIndex)
        let chosen = try Device.choose(platform: device.platformName, index: device.platformIndex)
        #expect(chosen.globalIndex == device.globalIndex)
    }

    @Test func preferredDeviceIsOfTheBestKind() throws {
        let chosen = try Device.choose()
        if try Device.all().contains(where: { $0.kind == .gpu }) { #expect(chosen.kind == .gpu) }
    }

    @Test func unknownPlatformIsRefusedWithWhatIsThere() throws {
        let error = try #require(throws: DeviceSelectionError.self) {
            try Device.choose(platform: "No Such Platform", index: 3)
        }
        let found = try Device.all().map { "\($0.globalIndex): \($0.platformName): \($0.name)" }
        #expect(error == .noMatch(asked: "platform \"No Such Platform\", index 3", found: found))
        #expect(error.description.contains("no OpenCL device matches platform \"No Such Platform\", index 3"))
        for device in found { #expect(error.description.contains(device)) }
        #expect(error.description.contains("diffused devices"))
    }

    @Test(arguments: [-1, 1000])
    func indexBeyondTheDevicesIsRefused(_ index: Int) {
        #expect(throws: DeviceSelectionError.self) { try Device.choose(index: index) }
    }
}

@Suite
struct OpenCLErrorTests {
    @Test func noDevicesSaysWhatToInstall() {
        let text = DeviceSelectionError.noDevices.description
        #expect(text.contains("/etc/OpenCL/vendors") && text.contains("pocl-opencl-icd"))
    }

    @Test(arguments: [
        (0, "CL_SUCCESS (0)"), (-5, "CL_OUT_OF_RESOURCES (-5)"), (-54, "CL_INVALID_WORK_GROUP_SIZE (-54)"),
        (-1001, "CL_PLATFORM_NOT_FOUND_KHR (-1001)"), (-2045, "CLBlastNoHalfPrecision (-2045)"),
        (-77777, "status -77777"),
    ])
    func statusHasTheNameOfItsConstant(_ status: Int32, _ name: String) {
        #expect(OpenCLStatus(rawValue: status).description == name)
    }

    @Test(arguments: [-4, -5, -6, -61])
    func lackOfMemoryIsRecognised(_ status: Int32) {
        #expect(OpenCLStatus(rawValue: status).isOutOfMemory)
        #expect(!OpenCLStatus.success.isOutOfMemory && !OpenCLStatus.buildProgramFailure.isOutOfMemory)
    }
}
