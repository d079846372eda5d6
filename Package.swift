// swift-tools-version: 6.2
import PackageDescription

let swiftSettings: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
]

// The layers below Serving are loops over tensors and weights: without optimisation their tests take several times as long.
let optimized = swiftSettings + [.unsafeFlags(["-O"], .when(configuration: .debug))]

let package = Package(
    name: "diffused",
    products: [
        .executable(name: "diffused", targets: ["diffused"])
    ],
    dependencies: [
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.2"),
        .package(url: "https://github.com/apple/swift-http-types", from: "1.8.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/swift-server/async-http-client", from: "1.37.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
    ],
    targets: [
        .executableTarget(
            name: "diffused",
            dependencies: [
                "Hub", "Serving", "StableDiffusion",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: swiftSettings
        ),
        .target(
            name: "Serving",
            dependencies: [
                "JSON", "StableDiffusion", "CPNG", "CTurboJPEG", "CYAML",
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "HTTPTypes", package: "swift-http-types"),
                .product(name: "Hummingbird", package: "hummingbird"),
                .product(name: "Logging", package: "swift-log"),
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
                .product(name: "UnixSignals", package: "swift-service-lifecycle"),
            ],
            swiftSettings: swiftSettings
        ),
        .target(
            name: "Hub",
            dependencies: [
                "JSON",
                .product(name: "AsyncHTTPClient", package: "async-http-client"),
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "NIOFoundationCompat", package: "swift-nio"),
                .product(name: "NIOHTTP1", package: "swift-nio"),
                .product(name: "NIOPosix", package: "swift-nio"),
            ],
            swiftSettings: swiftSettings
        ),
        .target(
            name: "StableDiffusion",
            dependencies: [
                "CVocabulary", "CZlib", "JSON", "TensorOps", .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: optimized
        ),
        .target(
            name: "TensorOps",
            dependencies: ["OpenCLRuntime", .product(name: "Logging", package: "swift-log")],
            swiftSettings: optimized
        ),
        .target(
            name: "OpenCLRuntime",
            dependencies: ["COpenCL", "CKernels", "CZlib", .product(name: "Logging", package: "swift-log")],
            swiftSettings: optimized
        ),
        .target(name: "JSON", swiftSettings: swiftSettings),
        // Embeds Kernels/* into the binary, so that an installed daemon needs no source tree.
        .target(name: "CKernels"),
        // Embeds CLIP's vocabulary, which a single file of weights has not got.
        .target(name: "CVocabulary"),
        .systemLibrary(name: "COpenCL", providers: [.apt(["ocl-icd-opencl-dev", "libclblast-dev"])]),
        .systemLibrary(name: "CPNG", providers: [.apt(["libpng-dev"])]),
        .systemLibrary(name: "CTurboJPEG", providers: [.apt(["libturbojpeg0-dev"])]),
        .systemLibrary(name: "CZlib", providers: [.apt(["zlib1g-dev"])]),
        .systemLibrary(name: "CYAML", providers: [.apt(["libyaml-dev"])]),
        .target(
            name: "TestSupport",
            dependencies: [
                "CZlib", "JSON", "OpenCLRuntime", "StableDiffusion", "TensorOps",
                .product(name: "Logging", package: "swift-log"),
            ],
            path: "Tests/Support",
            swiftSettings: optimized
        ),
        .testTarget(name: "JSONTests", dependencies: ["JSON"], swiftSettings: swiftSettings),
        .testTarget(
            name: "HubTests",
            dependencies: [
                "Hub", "JSON", "TestSupport",
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "NIOPosix", package: "swift-nio"),
            ],
            swiftSettings: swiftSettings
        ),
        .testTarget(
            name: "OpenCLRuntimeTests",
            dependencies: ["OpenCLRuntime", "TestSupport"],
            swiftSettings: swiftSettings
        ),
        .testTarget(
            name: "TensorOpsTests",
            dependencies: ["TensorOps", "TestSupport"],
            swiftSettings: swiftSettings
        ),
        .testTarget(
            name: "StableDiffusionTests",
            dependencies: ["JSON", "OpenCLRuntime", "StableDiffusion", "TensorOps", "TestSupport"],
            swiftSettings: swiftSettings
        ),
        .testTarget(
            name: "ServingTests",
            dependencies: [
                "CZlib", "JSON", "Serving", "StableDiffusion", "TensorOps", "TestSupport", "diffused",
                .product(name: "HummingbirdTesting", package: "hummingbird"),
                .product(name: "ServiceLifecycleTestKit", package: "swift-service-lifecycle"),
            ],
            swiftSettings: swiftSettings
        ),
    ],
    swiftLanguageModes: [.v6]
)
