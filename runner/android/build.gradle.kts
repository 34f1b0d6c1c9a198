import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    id("com.android.application") version "8.7.3"
    id("org.jetbrains.kotlin.android") version "2.0.21"
}

val engine = file("../../cmake-out/android") // where runner/build.sh android leaves it
val libraries = layout.buildDirectory.dir("engine").get().asFile // a folder in it for each kind of processor

if (!engine.resolve("libllava_jni.so").exists()) {
    throw GradleException("$engine has no libllava_jni.so; build the engine first: runner/build.sh android")
}

val copyEngine = tasks.register<Copy>("copyEngine") {
    from(engine) { include("lib*.so") }
    into(libraries.resolve("arm64-v8a"))
}

android {
    namespace = "org.llava.sample"
    compileSdk = 35

    defaultConfig {
        applicationId = "org.llava.sample"
        minSdk = 28 // as in runner/deploy/build.sh
        targetSdk = 35
        versionCode = 1
        versionName = "1"
        ndk { abiFilters += "arm64-v8a" }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }

    sourceSets.getByName("main") {
        java.srcDir("../java")
        jniLibs.srcDir(libraries)
    }
}

kotlin {
    compilerOptions { jvmTarget.set(JvmTarget.JVM_11) }
}

tasks.named("preBuild") { dependsOn(copyEngine) }
