plugins {
    alias(libs.plugins.android.library)
    `maven-publish`
}

android {
    namespace = "dev.calora"
    resourcePrefix = "calora_"
    compileSdk = libs.versions.compile.sdk.get().toInt()
    defaultConfig {
        minSdk = libs.versions.min.sdk.get().toInt()
        aarMetadata { minCompileSdk = libs.versions.min.sdk.get().toInt() }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    // What needs Android's framework lies apart, so that the rest compiles on a plain JVM (jvm/pom.xml).
    sourceSets { named("main") { kotlin.directories.add("src/android/kotlin") } }
    lint { warningsAsErrors = true }
    publishing {
        singleVariant("release") {
            withSourcesJar()
            withJavadocJar()
        }
    }
    testOptions {
        unitTests.all {
            it.useJUnitPlatform()
            // `cargo build -p calora-ffi` makes the host's library.
            it.systemProperty("jna.library.path", rootDir.resolve("../target/debug").path)
            it.systemProperty("calora.models", rootDir.resolve("../models").path)
        }
    }
}

kotlin { explicitApi() }

dependencies {
    api(libs.coroutines.core)
    implementation(project(":bindings"))

    // The desktop's native half.
    testImplementation(libs.jna)
    testImplementation(libs.kotlin.test)
    testImplementation(libs.junit)
    testImplementation(libs.json)
    testRuntimeOnly(libs.junit.launcher)
}

publishing {
    publications {
        register<MavenPublication>("release") {
            artifactId = "calora"
            afterEvaluate { from(components["release"]) }
            pom { describe("calora", "One compressed LLM on the phone, many tasks, each a small file.") }
        }
    }
}
